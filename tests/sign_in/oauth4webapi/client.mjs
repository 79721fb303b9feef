// A client of the npm package oauth4webapi, with all of its own checks on: whatever they find ends it.
//
//   client.mjs <MCP endpoint> <redirect URI> <token endpoint auth method> <MCP revision>
//
// It writes {"open": <address>} where a person has to go on in a browser, and reads the address that the browser is sent
// back to, as a line. What the MCP endpoint has said, and what the person has, it writes at the end.

import { createInterface } from "node:readline";
import * as oauth from "oauth4webapi";

const [endpoint, redirectUri, method, era] = process.argv.slice(-4);
const url = new URL(endpoint);
const plain = { [oauth.allowInsecureRequests]: true }; // loopback, without TLS
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const told = [];

// RFC 9728: the challenge leads to the resource's own document, and that to the authorization server.
const challenge = await call("select_walkthrough", { walkthrough: "tour" }, "never-issued");
const metadata = challenge[0].parameters.resource_metadata;
const resource = await oauth.processResourceDiscoveryResponse(url, await oauth.resourceDiscoveryRequest(url, plain));
told.push({ challenge: challenge.map(({ scheme, parameters }) => [scheme, parameters.error]), metadata, resource });

// RFC 8414
const issuer = new URL(resource.authorization_servers[0]);
const found = await oauth.discoveryRequest(issuer, { algorithm: "oauth2", ...plain });
const server = await oauth.processDiscoveryResponse(issuer, found);

// RFC 7591
const client = await oauth.processDynamicClientRegistrationResponse(
  await oauth.dynamicClientRegistrationRequest(
    server,
    { client_name: "Independent client", redirect_uris: [redirectUri], token_endpoint_auth_method: method },
    plain,
  ),
);
const auth = {
  none: () => oauth.None(),
  client_secret_basic: () => oauth.ClientSecretBasic(client.client_secret),
  client_secret_post: () => oauth.ClientSecretPost(client.client_secret),
}[method]();

told.push({ denied: await signIn().catch((error) => [error.constructor.name, error.error]) });

const first = await signIn();
told.push(await call("select_walkthrough", { walkthrough: "tour" }, first.access_token));

const second = await oauth.processRefreshTokenResponse(
  server,
  client,
  await oauth.refreshTokenGrantRequest(server, client, auth, first.refresh_token, {
    additionalParameters: { resource: resource.resource },
    ...plain,
  }),
);
const { handle } = told.at(-1).step;
told.push(await call("next_walkthrough_step", { completed_step: handle }, second.access_token));

await oauth.processRevocationResponse(
  await oauth.revocationRequest(server, client, auth, second.refresh_token, plain),
);
for (const token of [first.access_token, second.access_token]) {
  const [{ scheme, parameters }] = await call("select_walkthrough", { walkthrough: "tour" }, token);
  told.push({ revoked: [scheme, parameters.error] });
}

const third = await signIn();
told.push(await call("select_walkthrough", { walkthrough: "tour" }, third.access_token));

console.log(JSON.stringify({ told, tokens: [first, second, third] }));
process.exit();

// RFC 6749 section 4.1 with RFC 7636, RFC 8707 and RFC 9207; returns what the token endpoint answers.
async function signIn() {
  const verifier = oauth.generateRandomCodeVerifier();
  const state = oauth.generateRandomState();
  const asked = new URL(server.authorization_endpoint);
  asked.search = new URLSearchParams({
    response_type: "code",
    client_id: client.client_id,
    redirect_uri: redirectUri,
    code_challenge: await oauth.calculatePKCECodeChallenge(verifier),
    code_challenge_method: "S256",
    resource: resource.resource,
    scope: "walkthroughs offline_access",
    state,
  });
  console.log(JSON.stringify({ open: asked.href }));
  const { value } = await lines.next();
  const parameters = oauth.validateAuthResponse(server, client, new URL(value), state);
  const answer = await oauth.authorizationCodeGrantRequest(server, client, auth, parameters, redirectUri, verifier, {
    additionalParameters: { resource: resource.resource },
    ...plain,
  });
  return oauth.processAuthorizationCodeResponse(server, client, answer);
}

// The structured result of a tool call, or the challenges that it is refused with.
async function call(name, given, token) {
  const params = { name, arguments: given };
  if (era >= "2026-07-28") {
    params._meta = {
      "io.modelcontextprotocol/protocolVersion": era,
      "io.modelcontextprotocol/clientInfo": { name: "independent", version: "1" },
      "io.modelcontextprotocol/clientCapabilities": {},
    };
  }
  const message = { jsonrpc: "2.0", id: 1, method: "tools/call", params };
  const headers = new Headers({
    "content-type": "application/json",
    accept: "application/json, text/event-stream",
    "mcp-protocol-version": era,
    ...(era >= "2026-07-28" && { "mcp-method": message.method, "mcp-name": name }),
  });
  try {
    const answer = await oauth.protectedResourceRequest(token, "POST", url, headers, JSON.stringify(message), plain);
    return (await answer.json()).result.structuredContent;
  } catch (error) {
    if (error.code !== oauth.WWW_AUTHENTICATE_CHALLENGE || error.status !== 401) throw error;
    return error.cause;
  }
}

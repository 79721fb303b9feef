"""How Cairn is reached: the command line, HTTP and MCP."""

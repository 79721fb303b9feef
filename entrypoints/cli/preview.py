"""A walkthrough as one HTML page, for its author: what people read, and apart from it what only the assistant reads."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from html import escape

from domain.walkthrough import Manuscript, StepText

_STYLE = """
:root { color-scheme: light dark; --line: #c8ccd4; --quiet: #5a6070; --apart: #f3f5f9; --mark: #2456c8; }
@media (prefers-color-scheme: dark) {
  :root { --line: #454b58; --quiet: #a8afbf; --apart: #1e222b; --mark: #8fb2ff; }
}
body { font: 1.0625rem/1.6 system-ui, sans-serif; max-width: 44rem; margin: 0 auto; padding: 1.5rem; }
h1, h2, h3, h4 { line-height: 1.25; }
article { border-top: 1px solid var(--line); margin-top: 2.5rem; padding-top: 1rem; }
a { color: var(--mark); overflow-wrap: anywhere; }
a:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px; }
code, pre { font-family: ui-monospace, monospace; font-size: 0.9em; background: var(--apart); border-radius: 4px; }
code { padding: 0.1em 0.3em; overflow-wrap: anywhere; }
pre { padding: 0.8rem; overflow-x: auto; }
pre code { padding: 0; overflow-wrap: normal; }
blockquote { margin-inline: 0; padding-inline-start: 1rem; border-inline-start: 3px solid var(--line); }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border: 1px solid var(--line); padding: 0.3rem 0.6rem; text-align: start; }
.quiet { color: var(--quiet); margin-block: 0.2rem; }
aside { background: var(--apart); border-inline-start: 4px solid var(--mark); border-radius: 4px; }
aside { padding: 0.1rem 1rem; margin-block: 1rem; }
aside h3 { font-size: 1rem; }
""".strip()
# Nothing is fetched and nothing runs: the one style is known by its hash (CSP level 3, section 2.3.1).
_POLICY = "; ".join(
    [
        "default-src 'none'",
        f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
)


def page(manuscript: Manuscript, html_of: Callable[..., str]) -> str:
    """The page, complete in itself. `html_of` makes safe HTML of Markdown, with its headings below the page's."""
    title = escape(manuscript.title)
    description = escape(manuscript.description).replace("\n", "<br>\n")
    facts = [manuscript.type.value, _counted(len(manuscript.steps), "step")]
    if minutes := manuscript.estimated_minutes():
        facts.append(_counted(minutes, "minute"))
    contents = "\n".join(
        f'<li><a href="#step-{number}">{escape(step.title)}</a></li>'
        for number, step in enumerate(manuscript.steps, start=1)
    )
    steps = "\n".join(
        _article(number, len(manuscript.steps), step, html_of) for number, step in enumerate(manuscript.steps, start=1)
    )
    return f"""<!DOCTYPE html>
<html lang="">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}: preview</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="quiet">{escape(manuscript.key)} · {" · ".join(facts)}</p>
<p>{description}</p>
<nav aria-label="Steps"><ol>
{contents}
</ol></nav>
</header>
<main>
{steps}
</main>
</body>
</html>"""


def _article(number: int, count: int, step: StepText, html_of: Callable[..., str]) -> str:
    facts = [f"Step {number} of {count}", escape(step.key), f"delivery: {step.delivery.value}"]
    if step.estimated_minutes:
        facts.append(_counted(step.estimated_minutes, "minute"))
    apart = {
        "notes": ("notes", step.assistant_notes),
        "actions": ("workspace actions", step.workspace_actions),
        "done": ("done when", step.done_when),
    }
    asides = "\n".join(
        f'<aside aria-label="For the assistant: {heading}">\n<h3>For the assistant: {heading}</h3>\n'
        f"{html_of(text, headings_below=3, ids=f'step-{number}-{name}-')}</aside>"
        for name, (heading, text) in apart.items()
        if text is not None
    )
    return f"""<article id="step-{number}" aria-labelledby="title-{number}">
<h2 id="title-{number}">{escape(step.title)}</h2>
<p class="quiet">{" · ".join(facts)}</p>
{html_of(step.content, headings_below=2, ids=f"step-{number}-content-")}{asides}
</article>"""


def _counted(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if number == 1 else 's'}"

"""The page: sections under one another in a single file that loads nothing."""

from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path

import segadapt
from segadapt.output.report.sections import Section

_HERE = Path(__file__).parent
# what the page may load: what it carries itself, nothing else
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(title: str, summary: str, sections: Sequence[Section]) -> str:
    """The whole of it as HTML."""
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    links = "".join(f'<li><a href="#{s.anchor}">{escape(s.heading)}</a></li>' for s in sections)
    made = f"segadapt {segadapt.__version__}, {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="made">{escape(made)}</p>
</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
{summary}
{"".join(section.html() for section in sections)}</main>
<script>
{script}</script>
</body>
</html>
"""

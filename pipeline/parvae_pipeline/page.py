"""The HTML of a report: one page with its style inside, in the light or dark scheme of the reader."""

from __future__ import annotations

import html
from collections.abc import Sequence

STYLE = """
:root { color-scheme: light dark; --ground: #fbfbf9; --panel: #ffffff; --ink: #1d2327; --quiet: #667079;
  --rule: #e3e5e2; --first: #2f6f9f; --second: #e08a3c; --third: #6a9a58; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181b; --panel: #1c2226; --ink: #e6e9ea; --quiet: #98a3aa;
  --rule: #30383d; --first: #6fb1e0; --second: #f0a860; --third: #93c47d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.55 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; margin: 0 0 20px; } h2 { font-size: 18px; margin: 0 0 10px; } h3 { font-size: 15px; }
section { background: var(--panel); border: 1px solid var(--rule); border-radius: 10px; padding: 18px 22px;
  margin: 0 0 18px; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; }
.tile { flex: 1 1 180px; border-left: 3px solid var(--first); padding: 2px 12px; }
.tile b { display: block; font-size: 23px; font-weight: 600; } .tile span, .quiet, figcaption { color: var(--quiet); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 16px; }
figure { margin: 0; min-width: 0; } figure > svg { width: 100%; max-width: 460px; }
svg { display: block; height: auto; font: 13px system-ui, sans-serif; } svg text { fill: var(--quiet); }
svg .label { fill: var(--ink); } .grid { stroke: var(--rule); }
.line { fill: none; stroke-width: 2.5; stroke-linejoin: round; }
.diagonal { stroke: var(--quiet); stroke-dasharray: 5 5; } circle { fill: var(--first); fill-opacity: .65; }
.legend { font-size: 13px; color: var(--quiet); margin: 0 0 6px; } .legend span { margin-right: 16px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 6px; }
.grid-image { max-width: 100%; height: auto; image-rendering: pixelated; border-radius: 6px; background: #000; }
table { border-collapse: collapse; } th { text-align: left; font-weight: 600; }
td, th { padding: 5px 12px 5px 0; vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.light { display: inline-block; width: 14px; height: 14px; border-radius: 50%; margin-top: 4px; }
.green { background: #3fa35b; } .amber { background: #e9a92b; } .red { background: #d6453d; }
.sr { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
.bars { width: 100%; } .bars .bar { width: 60%; }
.bars .bar i { display: block; height: 12px; margin-top: 5px; background: var(--first); border-radius: 2px; }
.wide { overflow-x: auto; } .rows { font-size: 13px; } .rows td, .rows th { white-space: nowrap; }
.compared th, .compared td { white-space: normal; }
.rows tr + tr td { border-top: 1px solid var(--rule); } .differs { color: var(--second); }
"""


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """The page of titled sections, whose bodies are HTML."""
    parts = "".join(f"<section><h2>{html.escape(name)}</h2>{body}</section>" for name, body in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main><h1>{html.escape(title)}</h1>{parts}</main></body></html>\n"
    )

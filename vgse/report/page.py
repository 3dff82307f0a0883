"""The page around the sections: its templates, how numbers are written, style and script."""

import base64
import hashlib
import html
import json
import math
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vgse.report.run_files import MADE_BY

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"


@cache
def environment(package: str = "vgse.report") -> Environment:
    """The templates of `package`, then those that all pages share; values are escaped."""
    loader = ChoiceLoader([PackageLoader(name) for name in {package: 1, "vgse.report": 1}])
    found = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    for written in (number, magnitude, percent):
        found.filters[written.__name__] = written
    found.globals["made_by"] = MADE_BY
    return found


def render(template: str, content: dict[str, Any], *, package: str = "vgse.report") -> Markup:
    """The template `template`.html.jinja, filled with `content`."""
    return Markup(environment(package).get_template(f"{template}.html.jinja").render(content))


def page(
    title: str,
    style: str,
    head: str,
    sections: Sequence[tuple[str, str, str]],
    script: str,
    *,
    library: str = "",
) -> str:
    """The whole document; `sections` are (ident, title, body), `head` and bodies are HTML.

    `style` comes after the sheet that all pages share, `script` after pointer.js. `library` is a
    script before it that compiles functions of its own, such as plotly.js.
    """
    scripts = [text for text in (library, resource("pointer.js") + script) if text]
    digests = [base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in scripts]
    allowed = [f"'sha256-{digest}'" for digest in digests] + ["'unsafe-eval'"] * bool(library)
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src {' '.join(allowed)}; base-uri 'none'; form-action 'none'"
    )
    content = {
        "title": title,
        "policy": Markup(policy),
        "style": Markup(resource("style.css") + style),
        "head": Markup(head),
        "sections": [(ident, heading, Markup(body)) for ident, heading, body in sections],
        "scripts": [Markup(text) for text in scripts],
    }
    # Names of files may hold lone surrogates, which no page can.
    return render("page", content).encode("utf-8", "replace").decode()


def resource(name: str) -> str:
    """The text of a file that lies beside this one."""
    return resources.files("vgse.report").joinpath(name).read_text(encoding="utf-8")


def number(value: object, digits: int = 2) -> str:
    """A number with fixed digits, an en dash for none or NaN; ValueError for anything else."""
    if value is None:
        return NONE
    figure = float(str(value))
    if math.isnan(figure):
        return NONE
    text = f"{figure:,.{digits}f}"
    if text.strip("-0.") == "":
        text = text.lstrip("-")  # no minus before a rounded zero
    return text.replace("-", MINUS)


def magnitude(value: object) -> str:
    """A small number as a power of ten, such as 3.2e-13; an en dash for none."""
    if value is None:
        return NONE
    figure = float(str(value))
    return "0" if figure == 0 else f"{figure:.1e}".replace("-", MINUS)


def percent(value: object) -> str:
    """A share in 0..1 as a number out of a hundred with one digit, without the sign."""
    return NONE if value is None else number(100 * float(str(value)), 1)


def esc(value: object) -> str:
    """`value` as text that is safe in an element and in a quoted attribute."""
    text = str(value).encode("utf-8", "replace").decode("utf-8")  # no lone surrogates
    return html.escape(text, quote=True)


def data_block(ident: str, value: object) -> str:
    """A script element that holds `value` as JSON and cannot be closed from inside."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f'<script type="application/json" id="{ident}">{text}</script>'


def hero(
    kicker: str, title: str, result: str, facts: list[tuple[str, str]], *, aside: str = ""
) -> str:
    """The head of a page; `result` and `aside` are HTML, `facts` pair a term with HTML."""
    entries = "".join(f"<div><dt>{esc(term)}</dt><dd>{value}</dd></div>" for term, value in facts)
    return f"""<header>
<div class="hero"><div><p class="kicker">{esc(kicker)}</p>
<h1>{esc(title)}</h1>{result}</div>{aside}</div>
<dl class="facts">{entries}</dl>
</header>"""

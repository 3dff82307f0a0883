"""The page around the sections: its templates, how numbers are written, style and script."""

import base64
import hashlib
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
    found = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("vgse.report")]),
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
    head: Markup,
    sections: Sequence[tuple[str, str, Markup]],
    script: str,
    *,
    library: str = "",  # a script that compiles functions of its own, such as plotly.js
) -> str:
    """The whole document; `sections` are (ident, title, body)."""
    scripts = [Markup(text) for text in (library, resource("pointer.js") + script) if text]
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
        "head": head,
        "sections": sections,
        "scripts": scripts,
    }
    # Names of files may hold lone surrogates, which no page can.
    return render("page", content).encode("utf-8", "replace").decode()


def resource(name: str) -> str:
    """The text of a file that lies beside this one."""
    return resources.files("vgse.report").joinpath(name).read_text(encoding="utf-8")


def number(value: object, digits: int = 2) -> str:
    """A number with fixed digits, an en dash for none or NaN."""
    exact = float(str(math.nan if value is None else value))  # float32 by its shortest digits
    if math.isnan(exact):
        return NONE
    return f"{exact:z,.{digits}f}".replace("-", MINUS)  # z: no minus before a rounded zero


def magnitude(value: Any) -> str:
    """A small number as a power of ten, such as 3.2e-13; an en dash for none."""
    if value is None:
        return NONE
    return f"{float(value):.1e}".replace("-", MINUS) if value else "0"


def percent(value: object) -> str:
    """A share in 0..1 as a number out of a hundred with one digit, without the sign."""
    return NONE if value is None else number(100 * float(str(value)), 1)

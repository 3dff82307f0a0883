"""Whether the run can be trusted: findings, cluster measures, and the relations' certificate."""

from typing import Any

from vgse.report.page import MINUS, NONE, esc, magnitude, notice, number, percent
from vgse.report.run_files import Missing, RunFiles


def health_section(run: RunFiles) -> str:
    """Findings in sentences, then two small tables."""
    return f'{_findings(run)}<div class="two">{_measures(run)}{_certificate(run)}</div>'


def _findings(run: RunFiles) -> str:
    if not run.health:
        return notice(Missing("health.json"))
    findings = run.health.get("findings") or []
    speed = run.health.get("images_per_second")
    text = "" if speed is None else f" {number(speed, 0)} images a second."
    if not findings:
        return f'<p class="good">Nothing was found wrong.{text}</p>'
    items = "".join(
        f"<li><b>{esc(finding.get('cause', ''))}</b> {esc(finding.get('sentence', ''))}</li>"
        for finding in findings
    )
    return f'<ul class="findings">{items}</ul>' + (f"<p>{text}</p>" if text else "")


def _measures(run: RunFiles) -> str:
    clusters = run.evaluation.get("clusters")
    if not clusters:
        return f"<div><h3>Clusters</h3>{notice(Missing('evaluation.json', 'clusters'))}</div>"
    rows = _compare("NMI with the classes", clusters.get("nmi"), clusters.get("nmi_kmeans"))
    rows += _compare(
        "Nearest class mean, seen classes, %",
        clusters.get("nearest_class_mean"),
        clusters.get("nearest_class_mean_kmeans"),
        scale=100,
    )
    rows += _compare(
        "Nearest class mean, unseen classes, %",
        clusters.get("nearest_class_mean_unseen"),
        clusters.get("nearest_class_mean_unseen_kmeans"),
        scale=100,
    )
    used, total = clusters.get("used_clusters"), clusters.get("num_clusters")
    use = f"{esc(used)} of {esc(total)}"
    rows += f"<tr><th scope=row>Clusters in use</th><td>{use}</td><td></td></tr>"
    return (
        "<div><h3>Clusters</h3><p>On held-out pictures. Training should beat the k-means it "
        "started from; zero-shot accuracy alone cannot show whether it did.</p>"
        '<div class="scroll"><table class="plain"><thead><tr><th></th><th>trained</th>'
        f"<th>k-means</th></tr></thead><tbody>{rows}</tbody></table></div></div>"
    )


def _compare(label: str, ours: Any, theirs: Any, *, scale: int = 1) -> str:
    if ours is None:
        return ""
    text = percent if scale == 100 else lambda value: number(value, 3)
    kind = ""
    if theirs is not None:
        kind = "up" if float(ours) > float(theirs) else "down"
    other = "" if theirs is None else text(theirs)
    return (
        f'<tr><th scope=row>{label}</th><td><b class="{kind}">{text(ours)}</b></td>'
        f"<td>{other}</td></tr>"
    )


def _alpha(value: Any) -> str:
    return NONE if value is None else f"{float(value):g}".replace("-", MINUS)


def _certificate(run: RunFiles) -> str:
    relations = run.evaluation.get("relations")
    if not relations:
        return f"<div><h3>Relations</h3>{notice(Missing('evaluation.json', 'relations'))}</div>"
    entries = (
        ("Smallest weight allowed (&alpha;)", _alpha(relations.get("alpha"))),
        ("Largest duality gap", magnitude(relations.get("max_gap"))),
        ("Largest violation of a bound or the sum", magnitude(relations.get("max_violation"))),
        ("Solved by the library instead", number(relations.get("fallbacks"), 0)),
        ("Seen classes in a mixture, median", number(relations.get("median_support"), 0)),
    )
    rows = "".join(f"<tr><th scope=row>{term}</th><td>{value}</td></tr>" for term, value in entries)
    return (
        "<div><h3>Relations</h3><p>Each mixture is the exact optimum and carries the proof: the "
        "duality gap bounds how much better any other weights could be.</p>"
        f'<div class="scroll"><table class="plain"><tbody>{rows}</tbody></table></div></div>'
    )

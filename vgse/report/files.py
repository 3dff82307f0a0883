"""The configuration, and how to go on with the files."""

from vgse.report.html import esc, fold, notice
from vgse.report.load import Missing, RunFiles

NPZ = """import numpy as np

run = np.load("class_embeddings.npz")
names = run["class_names"]   # [C]
phi = run["embeddings"]      # [C, D_v]
unseen = phi[run["unseen"]]  # [U, D_v]

relations = np.load("relations.npz")
mixtures = relations["smo"]  # [U, S]
"""
MAT = """from scipy.io import loadmat

splits = loadmat("VGSE_SMO_splits.mat")

# The .mat keeps the usual layout [D_v, C].
phi = splits["att"].T

# Matlab counts from 1.
unseen_images = splits["test_unseen_loc"].ravel() - 1
"""


def files_section(run: RunFiles) -> str:
    """Two snippets and the folded configuration."""
    config = (
        fold("config.yaml", f'<pre class="scroll">{esc(run.config_text)}</pre>')
        if run.config_text
        else notice(Missing("config.yaml"))
    )
    return (
        "<p>From Python, in the run folder:</p>"
        f'<div class="two"><pre class="scroll">{esc(NPZ)}</pre><pre class="scroll">{esc(MAT)}</pre>'
        f"</div><p>The configuration of this run:</p>{config}"
    )

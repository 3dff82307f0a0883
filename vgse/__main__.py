"""Late stages of a run, without Ray: `python -m vgse relate | evaluate | export | report RUN`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser
from rich.console import Console

from vgse.config import EvaluationConfig, RelationConfig, check_seed
from vgse.errors import UserError

Normalisation = Literal["none", "l2", "z"]
Exported = Literal["smo", "wavg", "words+smo", "knowledge+smo", "all"]


def relate(
    run: Path,
    alpha: float | None = None,
    ridge: float | Literal["auto"] | None = None,
    num_neighbours: int | None = None,
    eta: float | None = None,
) -> None:
    """Choose and solve the relations of unseen to seen classes again.

    Rewrites relations.npz, relations.json, class_embeddings.npz and class_embeddings.safetensors
    of the run, and VGSE_SMO_splits.mat if it is there. What is not given comes from the run's
    config.yaml, where what is given is kept for evaluate and report.

    Args:
        run: Run folder.
        alpha: Lower bound of a weight: 0 for mixtures, -1 to allow differences.
        ridge: Ridge of the quadratic program, relative to the largest eigenvalue; auto chooses it.
        num_neighbours: Seen classes that the weighted average looks at.
        eta: Sharpness of the weighted average.
    """
    from vgse.relations.predict import relation_summary
    from vgse.run_folder import read_config, relate_run

    given = {"alpha": alpha, "ridge": ridge, "num_neighbours": num_neighbours, "eta": eta}
    config = read_config(run, "relations", RelationConfig, **given)
    classes, related, choice = relate_run(run, config)
    quality = relation_summary(related.smo, config.alpha)
    print(
        f"{len(classes.unseen)} unseen classes from {len(classes.seen)} seen ones at alpha = "
        f"{config.alpha:g}: largest relative gap {quality['max_gap']:.1e}, half of them use "
        f"{quality['median_support']:.0f} classes or fewer"
    )
    print(choice)
    print(run / "class_embeddings.npz")


def evaluate(
    run: Path | None = None,
    embeddings: Path | None = None,
    features: Path | None = None,
    splits: Path | None = None,
    words: str | None = None,
    models: list[str] | None = None,
    normalise: Normalisation | Literal["auto"] | None = None,
    holdout: float | None = None,
    folds: int | None = None,
    seed: int | None = None,
    num_seeds: int = 1,
    out: Path | None = None,
    csv: Path | None = None,
) -> None:
    """Print the zero-shot table of a run folder, or of files from elsewhere.

    A run: `evaluate RUN` rewrites its evaluation.json. Others' files: `evaluate --embeddings
    att_splits.mat --features res101.mat` shows the given embeddings beside random ones. All
    hyper-parameters are chosen on validation classes, and test images are opened once.

    Args:
        run: Run folder.
        embeddings: File of class embeddings from elsewhere: .mat with att, or .npz or .safetensors
            with class_names and embeddings. What says which classes it saw (the files of a run)
            is refused with splits in which such a class is unseen.
        features: Image features for them in the form of res101.mat (also of MATLAB 7.3), or .npz,
            .h5 or .safetensors with features [images, size] and labels that count from 0.
        splits: File in the form of att_splits.mat that holds the splits, if --embeddings does not.
        words: Word vectors for a further row: word2vec, GloVe, fastText, .npz or .mat.
        models: Zero-shot models, such as [eszsl, sje]: eszsl, sje, prototype, ale, devise, sae,
            sae_decoder, conse or cada_vae.
        normalise: Raw embeddings, unit rows, z-scores over the seen classes, or auto: chosen on
            validation classes. A .mat of others is taken raw by default.
        holdout: Share of each seen class's training images held out when choosing.
        folds: Class-wise folds of the seen classes on which everything is chosen, at most.
        seed: Seed of everything random; that of the run by default, 0 for others' files.
        num_seeds: Repetitions of what is random; above 1 the file holds mean and std.
        out: JSON file for the result of others' files.
        csv: Folder for predictions.csv and per_class.csv of all rows and models.
    """
    from vgse.files import write_json
    from vgse.run_folder import evaluate_run, read_config, read_seed
    from vgse.zsl.external import evaluate_files
    from vgse.zsl.show import evaluation_table

    if (run is None) == (embeddings is None):
        raise UserError("evaluate needs either a run folder or --embeddings with --features")
    if seed is not None:
        check_seed("--seed", seed)
    if num_seeds < 1:
        raise UserError(f"--num_seeds is {num_seeds}; give 1 or more")
    given = {"models": models, "normalise": normalise, "holdout": holdout, "folds": folds}
    config = read_config(run, "evaluation", EvaluationConfig, **given)
    if run is not None:
        if features or splits or words or out:
            raise UserError(
                "--features, --splits, --words and --out go with --embeddings, not with a run"
            )
        relations = read_config(run, "relations", RelationConfig)
        seed = read_seed(run) if seed is None else seed
        evaluation = evaluate_run(run, config, relations, seed, num_seeds=num_seeds, csv=csv)
        out = run / "evaluation.json"
    else:
        if embeddings is None or features is None:
            raise UserError("--embeddings needs --features, a file in the form of res101.mat")
        evaluation = evaluate_files(
            *(embeddings, features, splits, words, config, seed or 0),
            num_seeds=num_seeds,
            csv=csv,
            normalise=normalise,
        )
        if out is not None:
            write_json(out, evaluation)
    console = Console(markup=False, emoji=False, highlight=False)
    console.print(evaluation_table(evaluation))
    console.print(evaluation["summary"])
    if evaluation["protocol"].get("validation_drawn"):
        drawn = evaluation["protocol"]["validation_classes"]
        names = ", ".join(drawn[:5]) + (", …" if len(drawn) > 5 else "")
        console.print(
            f"No validation classes are given: {len(drawn)} of the seen classes were drawn by the "
            f"seed ({names})."
        )
    if out is not None:
        print(out)


def export(
    run: Path,
    out: Path | None = None,
    what: Exported = "smo",
    normalise: Normalisation = "l2",
    like: Path | None = None,
    labels: Path | None = None,
    features: bool = False,
) -> None:
    """Write the .mat files that zero-shot code loads.

    VGSE_SMO_splits.mat has the form of att_splits.mat: att and original_att [D x C],
    allclasses_names and the split fields, which count from 1.

    Args:
        run: Run folder.
        out: Folder for the files; the run folder by default.
        what: Class embeddings: of VGSE-SMO, of the paper's VGSE-WAvg, or those of VGSE-SMO beside
            word vectors or all knowledge; all writes a file of each.
        normalise: What att gets; original_att stays raw.
        like: An att_splits.mat whose class order and split fields are copied, to go with features
            that you have. A class that the run saw must not be unseen there.
        labels: The res101.mat that --like belongs to; the one beside it by default.
        features: Also write res101.mat with the run's own image features.
    """
    from vgse.run_folder import WHAT, export_features, export_splits

    if like is not None and features:
        raise UserError("--features writes the run's own images, to which --like does not belong")
    if labels is not None and like is None:
        raise UserError("--labels goes with --like")
    for each in WHAT if what == "all" else [what]:
        print(
            export_splits(run, out or run, what=each, normalise=normalise, like=like, labels=labels)
        )
    if features:
        print(export_features(run, out or run))


def report(run: Path) -> None:
    """Write report.html, one file with all pictures in it.

    Args:
        run: Run folder.
    """
    from vgse.report import write_report

    print(write_report(run))


_COMMANDS: dict[str, Callable[..., None]] = {
    function.__name__: function for function in (relate, evaluate, export, report)
}


def make_parser() -> ArgumentParser:
    """The command line: one subcommand a stage."""
    parser = ArgumentParser(
        prog="python -m vgse",
        description="Late stages of a run, from its folder and without Ray.",
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(dest="command")
    for name, function in _COMMANDS.items():
        description, _, _ = (function.__doc__ or "").partition("Args:")
        command = ArgumentParser(description=" ".join(description.split()), allow_abbrev=False)
        kind = {"type": Path | None, "nargs": "?"} if name == "evaluate" else {"type": Path}
        command.add_argument("run", metavar="RUN", help="Run folder.", **kind)
        flags = {"features"} if name == "export" else set()  # no value, which signatures want
        command.add_function_arguments(function, as_group=False, skip={"run", *flags})
        if flags:
            command.add_argument("--features", action="store_true", help="Also write res101.mat.")
        commands.add_subcommand(name, command, help=description.strip().splitlines()[0])
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; a user's mistake is one line on stderr and exit status 2."""
    options = make_parser().parse_args(arguments)
    try:
        if ":/" in str(options[options.command].run):  # Path has made s3:// to s3:/
            raise UserError("RUN is a URL; copy the run folder to this machine first")
        _COMMANDS[options.command](**vars(options[options.command]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

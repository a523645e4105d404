"""`faket-aug compare`: what is a simulated tomogram worth? The paper's comparison as one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from faket_aug.comparison.experiment import Experiment
    from faket_aug.comparison.result import ArmResult
    from faket_aug.comparison.settings import Comparison

CONFIG_COPY = "comparison.json"
RESULTS = "results.json"


def _show_settings(asked: bool) -> None:
    """Print what the file may say."""
    if not asked:
        return
    from faket_aug.comparison.settings import described

    for table, lines in described().items():
        typer.echo("\n".join([*([f"\n[{table}]"] if table else []), *lines]))
    raise typer.Exit


def compare(
    config: Annotated[Path, typer.Argument(help="TOML file with the specimens, the arms and the training.")],
    output: Annotated[Path, typer.Option(help="Folder of the results, made where it is missing.")] = Path("comparison"),
    arm: Annotated[
        list[str] | None, typer.Option(help="Run this arm only (may be given several times).", show_default=False)
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Run this seed only (may be given several times).", show_default=False)
    ] = None,
    critic: Annotated[
        str | None,
        typer.Option(
            help="Train this arm only, on measured tomograms; its networks pick in what the others simulate.",
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        bool,
        typer.Option(
            "--settings", callback=_show_settings, is_eager=True, help="Show what the TOML file may say, and exit."
        ),
    ] = False,
) -> None:
    """Train a picker on each kind of tomograms, and score all of them on the same measured ones.

    Writes tables (table.md, table.csv, per_class.csv, confusion.csv, learning.csv), pictures of scores, classes,
    confusion matrices and learning curves, and all that is needed to repeat it. Run it again after a stop: what is done
    is not done again, a broken training goes on from its checkpoint. On a cluster, run arms and seeds apart, into one
    folder: each call sums up all that is finished there.

    A critic tells in minutes how near simulated tomograms are to measured ones (critic.md, critic.csv).

    Before it come specimens with their measured tilts; after it `faket-aug train` on what was best. As `faket-aug
    compare compare.toml --output comparison`, on the files of `faket-aug demo --keep trial`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from faket_aug._checks import check_choice
    from faket_aug.comparison.experiment import Experiment
    from faket_aug.comparison.settings import Comparison
    from faket_aug.formats._atomic import make_writable_folder

    comparison = Comparison.from_toml(config)
    for name in arm or ():
        check_choice("--arm", name, comparison.arms)
    for number in seed or ():
        check_choice("--seed", number, comparison.seeds)
    make_writable_folder(output)
    _keep_settings(comparison, output)
    experiment = Experiment(comparison, output)
    console = Console(markup=False, highlight=False)
    columns = (TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    if critic is not None:
        check_choice("--critic", critic, comparison.arms)
        _criticize(experiment, critic, seed or comparison.seeds, arm or (), console)
        return
    with Progress(*columns, console=console) as progress:
        for number in seed or comparison.seeds:
            for name in comparison.ordered_arms():
                if arm and name not in arm:
                    continue
                task = progress.add_task(f"{name}, seed {number}", total=None)

                def report(_arm: str, _seed: int, step: int, steps: int, task: object = task) -> None:
                    progress.update(task, completed=step, total=steps)  # type: ignore[arg-type]

                result = experiment.run(name, number, report)
                progress.update(task, completed=len(result.losses), total=len(result.losses))
                line = f"macro-F1 {result.macro_f1:.3f}, localisation F1 {result.localization_f1:.3f}"
                progress.console.print(f"{name}, seed {number}: {line}", soft_wrap=True)
    # Those of other calls, too: arms and seeds may be run apart.
    _write(experiment.finished(), output)
    console.print((output / "table.md").read_text())
    console.print(f"results in {output}", soft_wrap=True)


def _keep_settings(comparison: Comparison, output: Path) -> None:
    """Write the settings once; another comparison does not mix its results with these."""
    from faket_aug.comparison.settings import MORE_SCORING, SCORING_SETTINGS
    from faket_aug.formats._json import write_json

    path, own = output / CONFIG_COPY, json.loads(json.dumps(comparison.to_dict()))
    if path.is_file():
        saved = read_kept(path)
        # More arms and seeds may come to those that are there; how it is scored may change, and where it runs.
        free = {"seeds", "device", "threads", "workers", *SCORING_SETTINGS, *MORE_SCORING}
        other = [name for name in comparison.differences(saved) if name not in free]
        both = sorted(set(saved["arms"]) & set(own["arms"]))
        other += [f"arms.{name}" for name in both if saved["arms"][name] != own["arms"][name]]
        if other:
            raise ValueError(
                f"{path}: expected the same comparison as before, got other settings for {', '.join(other)}; set "
                "--output to another folder"
            )
        own["arms"] = saved["arms"] | own["arms"]
    write_json(path, own)


def read_kept(path: Path) -> dict[str, Any]:
    """Read the settings that a comparison was begun with.

    Raises
    ------
    FileFormatError
        If the file is no such file, or is damaged.
    """
    from faket_aug._checks import FileFormatError
    from faket_aug._settings import settings_of
    from faket_aug.comparison.settings import Comparison
    from faket_aug.formats._json import read_json

    what = "the settings of a comparison"
    saved, known = read_json(path, what=what), settings_of(Comparison)
    if not isinstance(saved.get("arms"), dict) or not set(saved) <= set(known):
        raise FileFormatError(
            f"{path}: expected {what}, `arms` among them, got {', '.join(map(str, saved))[:200]}; set --output to "
            "another folder"
        )
    return saved


def _criticize(
    experiment: Experiment, critic: str, seeds: Sequence[int], only: Sequence[str], console: Console
) -> None:
    from faket_aug.comparison.critic import critic_csv, critic_markdown, criticize, read_criticisms
    from faket_aug.formats._atomic import write_text

    for number in seeds:
        criticize(experiment, critic, number, only=only)
        console.print(f"seed {number}: done", soft_wrap=True)
    # Those of other calls, too: seeds may be run apart.
    found = [row for number in experiment.comparison.seeds for row in read_criticisms(experiment, critic, number)]
    write_text(experiment.output / "critic.csv", critic_csv(found))
    write_text(experiment.output / "critic.md", critic_markdown(found))
    console.print(critic_markdown(found))


def _write(results: Sequence[ArmResult], output: Path) -> None:
    from faket_aug.comparison import figures
    from faket_aug.comparison.result import write_results
    from faket_aug.comparison.summary import (
        as_csv,
        as_markdown,
        confusion_csv,
        learning_csv,
        per_class_csv,
    )
    from faket_aug.figures import save_figure
    from faket_aug.formats._atomic import write_text

    write_results(output / RESULTS, results)
    write_text(output / "table.md", as_markdown(results))
    write_text(output / "table.csv", as_csv(results))
    write_text(output / "per_class.csv", per_class_csv(results))
    write_text(output / "confusion.csv", confusion_csv(results))
    write_text(output / "learning.csv", learning_csv(results))
    save_figure(figures.score_bars(results), output / "scores.png")
    save_figure(figures.class_bars(results), output / "classes.png")
    save_figure(figures.confusion_matrices(results), output / "confusion.png")
    save_figure(figures.learning_curves(results), output / "learning.png")

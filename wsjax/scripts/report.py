"""Tables of run directories, one for all that were certified, and their curves.

  wsjax report runs/a runs/b --out=comparison.png

Directories are named as they are, by --workdir as for the other commands, or by the
--config that they were made with; without any, all of runs/ are shown. What was attacked
there has a table for each directory.
"""

import argparse
import pathlib
import sys

from wsjax import plots
from wsjax.console.output import errors_in_a_sentence
from wsjax.runs import attack_report, named_configs, report


def start() -> None:
    """Runs it with the command line's arguments."""
    parser = argparse.ArgumentParser(
        pathlib.Path(sys.argv[0]).name,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folders", nargs="*", type=pathlib.Path, help="run directories")
    add("--workdir", action="append", type=pathlib.Path, help="another one")
    add("--config", action="append", help="name or file; its default directory")
    add("--out", type=pathlib.Path, help="figure to write, with all curves")
    add("--theorem", action="append", choices=("tight", "published"))
    with errors_in_a_sentence(ValueError, OSError, ImportError):
        given = parser.parse_args()
        of_configs = map(named_configs.default_workdir, given.config or ())
        folders = [*given.folders, *(given.workdir or ()), *of_configs]
        show(folders or everything(), given.out, given.theorem)


def everything(folder: pathlib.Path = pathlib.Path("runs")) -> list[pathlib.Path]:
    """Run directories in a folder.

    Raises:
      FileNotFoundError: there is none.
    """
    found = sorted(path.parent for path in folder.glob("*/run.json"))
    found = [x for x in found if _rows_file(x) or attack_report.read_all(x)]
    if not found:
        raise FileNotFoundError(
            f"Nothing was certified or attacked in {folder.absolute()}; name a run "
            f"directory, or run `wsjax certify` first."
        )
    return found


def show(
    folders: list[pathlib.Path],
    out: pathlib.Path | None = None,
    theorems: list[str] | None = None,
) -> None:
    """Prints what is there about run directories.

    Args:
      folders: the directories.
      out: figure to write, or None.
      theorems: as in `report.read_certified`.

    Raises:
      FileNotFoundError: a directory has no rows.
      ValueError: damaged rows, or a figure of several ground metrics.
    """
    names = [folder.name for folder in folders]
    attacked = {folder: attack_report.read_all(folder) for folder in folders}
    runs = [
        # The whole path where last parts alone would collide in the legend.
        run
        if names.count(folder.name) == 1
        else run._replace(name=f"{folder}: {run.name}")
        for folder in folders
        # Without rows of either kind it says which are missing.
        if (rows := _rows_file(folder)) or not attacked[folder]
        for run in report.read_certified(folder, theorems, rows or report.CERTIFICATES)
    ]
    metrics = sorted({run.metric for run in runs})
    if len(metrics) > 1 and out:
        raise ValueError(
            f"These runs use different ground metrics {metrics}; their radii cannot "
            f"share a figure."
        )
    for metric in metrics:
        alike = [run for run in runs if run.metric == metric]
        table = report.certificate_table(alike)
        table.title = f"Certified test images, ground metric {metric}"
        report.show(table)
    for folder, found in attacked.items():
        if found:
            table = attack_report.attack_table(found)
            table.title = f"Attacked test images, {folder}"
            report.show(table)
    if out and runs:
        curves = {run.name: run.curve for run in runs}
        plots.accuracy_curves(out, curves, metric=metrics[0])


def _rows_file(folder):
    """Name of the rows that were certified there, "" for none."""
    known = (x for x in report.ROWS_FILES if (folder / x).exists())
    return next(known, "")

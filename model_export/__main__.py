"""The `notegrade-train` command.

Commands import what they need themselves: importing torch and transformers takes seconds, and `--help` needs neither.
"""

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from model_export.progress import quiet_vendors, show_progress
from service.errors import NotegradeError

if TYPE_CHECKING:
    from model_export.recipe import Precision

USAGE_ERROR = 2

DataFolder = Annotated[Path, typer.Option(help="Folder that the recipe's data files lie in.")]
JsonFile = Annotated[Path | None, typer.Option(help="JSON file for all figures.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE that overrides the recipe, such as label_only_sft.steps=300."),
]

app = typer.Typer(
    name="notegrade-train",
    help="Make the checkpoints that Notegrade serves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def assemble(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    base: Annotated[
        str, typer.Option(help="A folder, GGUF file, hub id, `smollm2` or `gemma3`.")
    ] = "smollm2",
    adapter: Annotated[Path | None, typer.Option(help="Adapter; for `smollm2` the packaged one.")] = None,
    zero_shot: Annotated[bool, typer.Option("--zero-shot", help="Use no adapter.")] = False,
    template: Annotated[str | None, typer.Option(help="For zero-shot; default by the base.")] = None,
    criteria: Annotated[str | None, typer.Option(help="For zero-shot; default general-1.")] = None,
    name: Annotated[str | None, typer.Option(help="The base's or adapter's by default.")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Write int8 weights (W8A8).")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing checkpoint.")] = False,
) -> None:
    """Make a checkpoint of a base model: with a trained adapter merged in, or zero-shot with a criteria prompt."""
    from model_export.checkpoint.adapter import DEFAULT_ADAPTER
    from model_export.checkpoint.assemble import Plan
    from model_export.checkpoint.assemble import assemble as make
    from model_export.data.criteria import load_criteria
    from model_export.data.template import find_template
    from model_export.models.base_model import DEFAULT_BASE

    zero_shot = zero_shot or template is not None or criteria is not None
    if adapter is None and base == DEFAULT_BASE and not zero_shot:
        adapter = DEFAULT_ADAPTER
    plan = Plan(
        base,
        template=find_template(template) if template else None,
        criteria=load_criteria(criteria) if criteria else None,
        name=name,
        adapter=adapter,
        int8=int8,
    )
    with show_progress() as on_progress:
        make(plan, out, force=force, on_progress=on_progress)
    typer.echo(f"{out} is ready")


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a TOML file.")],
    data: DataFolder = Path(),
    out: Annotated[Path | None, typer.Option(help="Folder; runs/<name of the recipe> by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed in place of the recipe's.")] = None,
    changes: Changes = None,
    control_only: Annotated[bool, typer.Option("--control-only", help="Train the control alone.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and train nothing.")] = False,
) -> None:
    """Train a teacher and its student by a recipe, and export the student. A rerun resumes where the last run stopped."""
    from model_export.recipe_file import parse_recipe, read_recipe_text

    text = read_recipe_text(recipe, changes or ())
    plan = parse_recipe(text, f"the recipe {recipe}")
    if seed is not None:
        plan = plan.model_copy(update={"seed": seed})
    if dry_run:
        from model_export.dry_run import describe_plan

        typer.echo(describe_plan(plan, data))
        return
    from model_export.evaluation.evaluate import format_table
    from model_export.models.model_io import is_emulated
    from model_export.run import run as train

    if is_emulated(plan.model.precision):
        typer.echo(
            "bfloat16 is emulated on this processor: --set model.precision=float32 is faster", err=True
        )
    folder = out or Path("runs") / plan.name
    with show_progress() as on_progress:
        evaluation = train(plan, text, data, folder, on_progress, control_only=control_only)
    typer.echo(format_table(evaluation))
    if not control_only:
        typer.echo(f"{folder}/checkpoint is ready")
    typer.echo(f"The report is {folder}/report.html")


@app.command()
def evaluate(
    checkpoints: Annotated[list[Path], typer.Argument(help="Folders; all are compared with the first.")],
    recipe: Annotated[Path, typer.Option(help="Recipe whose dev or test pairs to measure on.")],
    data: DataFolder = Path(),
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=FOLDER of a run's stage: a model under the recipe's prompt, or its cross-encoder."
        ),
    ] = None,
    test: Annotated[bool, typer.Option("--test", help="Measure on the test pairs, as served.")] = False,
    card: Annotated[
        Path | None,
        typer.Option(help="With --test: the first checkpoint's adapter, whose model card gets the figures."),
    ] = None,
    out: JsonFile = None,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Measure in bfloat16, as served.")] = False,
    explanations: Annotated[
        int,
        typer.Option(help="Measure explanations of the first checkpoint on this many pairs of each source."),
    ] = 0,
) -> None:
    """Measure checkpoints and the controls on all dev pairs of a recipe's data, or with --test on its test pairs."""
    from model_export.recipe_file import load_recipe

    plan = load_recipe(recipe)
    from model_export.checkpoint.adapter import check_is_of, note_test_figures
    from model_export.data.held_out import check_untouched, read_test
    from model_export.data.prepare import read_data
    from model_export.data.prompting import PromptForm
    from model_export.evaluation import evaluate_checkpoints as on
    from model_export.evaluation.evaluate import format_table
    from model_export.reports.held_out_table import held_out_rows
    from service.contract.manifest import read_manifest

    if card:
        if not test:
            raise typer.BadParameter("--card needs --test")
        check_is_of(card, read_manifest(checkpoints[0]).name)
    precision: Precision = "bfloat16" if bfloat16 else "float32"
    with show_progress() as on_progress:
        pairs = read_data(plan, data)
        held_out = read_test(plan, data, pairs) if test else None
        if held_out:
            for manifest in map(read_manifest, checkpoints):
                check_untouched(manifest.name, manifest.lineage.data_hashes, held_out)
        form = PromptForm.of(plan.model, pairs.criteria)
        served = on.list_checkpoints(checkpoints, on_progress, precision)
        models = on.list_models(_read_named_folders(model or ()), form, on_progress, precision)
        controls = on.list_controls(pairs, plan.evaluate.encoders, on_progress)
        systems, main = [*controls, *served, *models], served[0].name
        bootstrap = {"seed": plan.seed, "draws": plan.evaluate.draws}
        if held_out:
            found = on.evaluate_on_test(systems, main, pairs, held_out.pairs, held_out.long_tail, **bootstrap)
        else:
            found = on.evaluate_on_dev(systems, main, pairs, **bootstrap)
        explained: dict[str, Any] = {}
        if explanations:
            from model_export.evaluation import explanations as of

            measured = held_out.pairs if held_out else pairs.dev
            figures = of.measure_checkpoint(
                checkpoints[0], measured, explanations, plan.seed, precision, on_progress
            )
            explained = {"explanations": of.to_json(figures)}
    _write_json(out, found.to_json() | explained)
    if card:
        note_test_figures(card, held_out_rows(found.evaluation, main))
    typer.echo(format_table(found.evaluation))
    if explained:
        typer.echo(of.format_figures(figures))


@app.command()
def ladder(
    runs: Annotated[list[Path], typer.Argument(help="Runs of one recipe: folders or results.json files.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    lever: Annotated[
        list[Path] | None, typer.Option(help="Run with a changed setting (`run --set`).")
    ] = None,
) -> None:
    """Show what each step of a recipe gained and cost over several seeds, and what else was tried, on one page."""
    from model_export.reports.ladder import write_ladder

    write_ladder(runs, lever or (), out)
    typer.echo(f"{out} is ready")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Checkpoint folder that serves now.")],
    second: Annotated[Path, typer.Argument(help="Checkpoint folder that might replace it.")],
    pairs: Annotated[Path, typer.Option(help="Pairs in JSON lines; they need no label.")],
    criteria: Annotated[str | None, typer.Option(help="For both; each one's own default if unset.")] = None,
    out: JsonFile = None,
) -> None:
    """Compare two checkpoints: what would change in grades, order, scores and cost if the second replaced the first."""
    from model_export.evaluation.compare_checkpoints import compare_checkpoints

    with show_progress() as on_progress:
        found = compare_checkpoints(first, second, pairs, criteria, seed=0, on_progress=on_progress)
    _write_json(out, found.to_json())
    typer.echo(found.describe())


@app.command()
def label(
    pairs: Annotated[Path, typer.Argument(help="Pairs in JSON lines; they need no label.")],
    teacher: Annotated[Path, typer.Option(help="Folder of the teacher, such as a run's rl-... stage.")],
    recipe: Annotated[Path, typer.Option(help="Recipe that trained the teacher.")],
    out: Annotated[Path, typer.Option(help="Folder for the labels; a rerun resumes in it.")],
    source: Annotated[str | None, typer.Option(help="The recipe's source that the pairs are like.")] = None,
    paths: Annotated[int | None, typer.Option(help="Paths per pair; the recipe's by default.")] = None,
    temperature: Annotated[float | None, typer.Option(help="The recipe's by default.")] = None,
    engines: Annotated[int, typer.Option(min=1, help="vLLM engines, each on its own GPU if any.")] = 1,
    address: Annotated[str, typer.Option(help="Address of a Ray cluster; `local` starts one.")] = "local",
    shard_size: Annotated[int, typer.Option(min=1, help="Pairs per file of labels.")] = 10_000,
) -> None:
    """Let a teacher label any number of pairs on Ray Data and vLLM: soft labels for a recipe's `label.folder`."""
    from model_export.recipe_file import load_recipe

    changed = {"label.paths": paths, "label.temperature": temperature}
    made_by = load_recipe(recipe, [f"{key}={value}" for key, value in changed.items() if value is not None])
    from functools import partial

    from model_export.scale_out.label_at_scale import label_file
    from model_export.scale_out.label_plan import LabelPlan, recipe_source
    from model_export.scale_out.ray_engine import complete_on_ray

    plan = LabelPlan(made_by, pairs, recipe_source(made_by, source), teacher, shard_size)
    with show_progress() as on_progress:
        engine = partial(complete_on_ray, engines=engines, address=address)
        summary = label_file(plan, out, engine, on_progress)
    typer.echo(summary)


@app.command()
def export_verl(
    recipe: Annotated[Path, typer.Argument(help="Recipe whose stage `rl` verl shall run.")],
    data: DataFolder = Path(),
    *,
    teacher: Annotated[
        Path, typer.Option(help="Folder of the SFT teacher, such as a run's cot_sft-... stage.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for train.parquet and dev.parquet.")],
    changes: Changes = None,
) -> None:
    """Write a recipe's pairs as verl's data: prompts, and what reward and step mask need."""
    from model_export.recipe_file import load_recipe
    from model_export.scale_out.verl_export import export_rows

    typer.echo(export_rows(load_recipe(recipe, changes or ()), data, teacher, out))


@app.command()
def experiment(
    recipe: Annotated[
        Path, typer.Argument(help="A recipe with a section `experiment`, such as recipes/sam.toml.")
    ],
    data: DataFolder = Path(),
    *,
    out: Annotated[Path, typer.Option(help="Folder to work in; a rerun keeps what is finished.")],
    seeds: Annotated[str | None, typer.Option(help="Only these seeds, such as 1,2; all by default.")] = None,
    changes: Changes = None,
) -> None:
    """Compare the step mask with its controls: all arms of all seeds, from shared warm-ups."""
    from model_export.experiment.report import write_experiment
    from model_export.experiment.run import run_seeds
    from model_export.recipe_file import load_recipe

    loaded = load_recipe(recipe, changes or ())
    chosen = [int(seed) for seed in seeds.split(",")] if seeds else loaded.experiment.seeds
    with show_progress() as on_progress:
        found = run_seeds(loaded, data, out, chosen, on_progress)
    if seeds is None:
        typer.echo(write_experiment(found, out))


@app.command()
def cross_validate(
    recipes: Annotated[
        list[Path], typer.Argument(help="Recipes with the same data; all are compared with the first.")
    ],
    data: DataFolder = Path(),
    *,
    out: Annotated[Path, typer.Option(help="Folder to work in; a rerun keeps what is finished.")],
    folds: Annotated[int, typer.Option(min=2, help="Folds of the training queries.")] = 5,
    control_only: Annotated[bool, typer.Option("--control-only", help="Compare the controls alone.")] = False,
) -> None:
    """Compare recipes on all training queries: each fold is predicted by students trained on the other folds."""
    from model_export.recipe_file import load_recipe

    plans = [load_recipe(recipe) for recipe in recipes]
    from model_export.experiment import cross_validate as by_folds

    with show_progress() as on_progress:
        found = by_folds.cross_validate(plans, data, folds, out, on_progress, control_only=control_only)
    typer.echo(by_folds.format_comparison(found))


@app.command()
def verify(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    pairs: Annotated[Path | None, typer.Option(help="Judged pairs, to check macro-F1 too.")] = None,
    criteria: Annotated[str | None, typer.Option(help="Criteria that the pairs were judged by.")] = None,
    vllm: Annotated[bool, typer.Option(help="Start plain vLLM on the folder and check it too.")] = True,
) -> None:
    """Run the export gates on any checkpoint folder. The exit code is 1 when a gate fails."""
    from model_export.checkpoint.gates import verify as measure
    from model_export.data.pairs import Source, read_pairs
    from service.contract.manifest import read_manifest

    manifest = read_manifest(checkpoint)
    source = Source("pairs", criteria or manifest.criteria[0].name, tuple(range(len(manifest.labels))))
    gates = measure(checkpoint, read_pairs(pairs, source) if pairs else (), with_vllm=vllm)
    for gate in gates:
        typer.echo(f"{'passed' if gate.passed else 'FAILED'}  {gate.what}: {gate.figure:.4g}, {gate.bound}")
    if not all(gate.passed for gate in gates):
        raise typer.Exit(1)


def _read_named_folders(options: Sequence[str]) -> dict[str, Path]:
    """Split NAME=FOLDER options."""
    split = [option.partition("=") for option in options]
    if wrong := [name for name, _, folder in split if not Path(folder).is_dir() or not folder]:
        raise typer.BadParameter(f"must be NAME=FOLDER with an existing folder: {', '.join(wrong)}")
    return {name: Path(folder) for name, _, folder in split}


def _write_json(file: Path | None, figures: dict[str, Any]) -> None:
    if file is not None:
        file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _exit(signum: int, _frame: FrameType | None) -> NoReturn:
    # Exit by an exception, so that half-written folders are removed.
    sys.exit(128 + signum)


def main() -> None:
    """Run the command. Errors that a user can correct are one line on stderr, with exit code 2."""
    signal.signal(signal.SIGTERM, _exit)
    quiet_vendors()
    try:
        app()
    except (NotegradeError, OSError) as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("model_export", "service"):
            raise
        _fail(
            f"the module {error.name} is not installed: pip install 'notegrade[train]' as docs/deploy.md says, "
            "in a clone `make setup-train`"
        )


def _fail(message: str) -> NoReturn:
    typer.echo(f"notegrade-train: {message}", err=True)
    sys.exit(USAGE_ERROR)


if __name__ == "__main__":
    main()

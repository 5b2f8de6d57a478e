"""A recipe's run, top to bottom: from data to a checkpoint, a table and a report."""

import shutil
from dataclasses import replace
from pathlib import Path

from model_export.checkpoint.writer import OnProgress, check_probes
from model_export.data.pairs import GRADES
from model_export.data.prompting import PromptForm, Prompting
from model_export.data.template import find_template
from model_export.evaluation.baselines import bm25, majority
from model_export.evaluation.evaluate import Evaluation, evaluate
from model_export.outcome import CHECKPOINT, Models, Outcome, write_checkpoint, write_results_and_report
from model_export.recipe import Recipe
from model_export.stages import Stages, lock
from model_export.work import Work


def run(
    recipe: Recipe,
    recipe_text: str,
    root: Path,
    out: Path,
    on_progress: OnProgress,
    *,
    control_only: bool = False,
) -> Evaluation:
    """Run the recipe on the data under `root` in the folder `out`, from where an earlier run of it got to.

        data > bases > label-only control
                     > warm-up > GRPO
                               > GRPO with the step mask > soft labels > student

    Without RL (`rl.steps = 0`) the warm-up writes the soft labels.

    Leaves `checkpoint/`, `report.html` and `results.json` in `out`; with `control_only` the latter two alone, of the first line.
    Raises NotegradeError with one line for what a user can put right: bad data, a warm-up that teaches no traces, a gate that is
    not passed.
    """
    with lock(out):
        _remove_remains(out)
        stages = Stages(out)
        work = Work(recipe, root, stages, on_progress)

        data = work.data()
        student_base = work.base("student_base", recipe.model.student_base, data)
        form = PromptForm(find_template(recipe.model.template), data.criteria, recipe.model.limits)
        answers_first = Prompting.load(form, student_base)
        check_probes(form, answers_first.tokenizer)
        answers_first.check_queries([*data.train, *data.dev])
        control = work.label_only(data, answers_first, student_base)

        pairs = work.dev_pairs(data)
        systems = [
            majority(data.train, pairs, len(GRADES)),
            bm25(data.train, pairs, len(GRADES)),
            work.predict_directly("zero_shot", pairs, answers_first, student_base),
            work.predict_directly("label_only_sft", pairs, answers_first, control),
        ]

        def measure() -> Outcome:
            found = evaluate(systems, pairs, data.long_tail, seed=recipe.seed, draws=recipe.evaluate.draws)
            return Outcome(recipe, recipe_text, data, pairs, systems, found, stages.records)

        if control_only:
            outcome = measure()
            write_results_and_report(outcome, work.logs, out)
            return outcome.evaluation

        one_base = recipe.model.teacher == recipe.model.student_base
        teacher_base = student_base if one_base else work.base("teacher_base", recipe.model.teacher, data)
        reasons_first = answers_first if one_base else Prompting.load(form, teacher_base)
        warm_start = control if recipe.cot_sft.start == "label_only_sft" else teacher_base
        warm = work.warm_up(data, reasons_first, warm_start)
        work.check_parse_rate(data, reasons_first, warm)
        reinforced = {name: work.reinforce(name, data, reasons_first, warm) for name in recipe.rl.stages}
        teachers = {"cot_sft": warm, **reinforced}
        teacher = teachers[recipe.label.teacher]
        soft_labels = work.label(data, reasons_first, teacher)
        student_start = {"base": student_base, "label_only_sft": control, "teacher": teacher}[
            recipe.distil.start
        ]
        distilled = work.distil(data, soft_labels, answers_first, student_start)
        student = work.cut(distilled, student_base, data, soft_labels, answers_first)

        systems += [
            *(work.predict_by_reasoning(name, pairs, reasons_first, each) for name, each in teachers.items()),
            work.predict_directly("student", pairs, answers_first, student),
        ]
        served = systems[-1]
        if len(pairs) < len(data.dev):
            on_all = work.predict_directly("student_on_all", data.dev, answers_first, student)
            served = replace(on_all, system="student")
        outcome = measure()
        write_results_and_report(outcome, work.logs, out)
        models = Models(student, student_base, teacher)
        write_checkpoint(outcome, form, models, served, out, on_progress)
        return outcome.evaluation


def _remove_remains(out: Path) -> None:
    """What an export that was killed left: it starts anew."""
    for remains in out.glob(f".{CHECKPOINT}.*"):
        shutil.rmtree(remains)

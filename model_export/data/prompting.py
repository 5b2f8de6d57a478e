"""Prompts and completions of both models, as token ids.

The student writes the grade first and then the steps; the teacher writes the steps first and then the grade.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter

from model_export.data.pairs import GRADES, UNJUDGED, DataError, Pair, listed
from model_export.data.rollout_reader import RolloutReader
from model_export.data.template import check_control_tokens, find_template, vector_template
from model_export.recipe import ModelConfig
from model_export.recipe_stages import EncodeConfig
from service.contract.checkpoint import Checkpoint
from service.contract.manifest import Criteria, Limits
from service.contract.prompt import PromptRenderer
from service.contract.template import Template, TextPiece
from service.contract.tokenizer import ContractTokenizer
from service.contract.trace import ANSWER_CUE, EXPLANATION_CUE, STEPS_CUE
from service.contract.vector_prompt import VectorRenderer
from service.errors import InvalidRequestError, NotegradeError


class PromptingError(NotegradeError):
    """Raised for a template or tokenizer that does not work for both models, or for a query that is too long."""


@dataclass(frozen=True, slots=True)
class PromptForm:
    """Template, criteria and limits, as a manifest holds them and the contract's renderer takes them.

    `teacher_criteria` are the same criteria at length, for the teacher alone; without them it reads the student's.
    """

    template: Template
    criteria: tuple[Criteria, ...]
    limits: Limits
    teacher_criteria: tuple[Criteria, ...] = ()

    @classmethod
    def of(
        cls, model: ModelConfig, criteria: tuple[Criteria, ...], teacher_criteria: tuple[Criteria, ...] = ()
    ) -> Self:
        """Return the form of a recipe's prompts. Raises TemplateError for an unknown template."""
        return cls(find_template(model.template), criteria, model.limits, teacher_criteria)

    @property
    def of_student(self) -> "PromptForm":
        """Return what the student reads alone."""
        return replace(self, teacher_criteria=())

    def to_json(self) -> dict[str, object]:
        """Return the form as JSON-like data, for hashing."""
        found: dict[str, object] = TypeAdapter(PromptForm).dump_python(self, mode="json")
        return found


class Prompting:
    """Renders pairs for one tokenizer. The teacher's prompt is the student's with longer criteria and another cue at its end."""

    def __init__(self, form: PromptForm, tokenizer: ContractTokenizer, end_token_id: int) -> None:
        self.form = form
        self.tokenizer = tokenizer
        self.end_token_id = end_token_id
        self._student = PromptRenderer(form, tokenizer)
        self._teacher = PromptRenderer(
            PromptForm(teacher_template(form.template), form.teacher_criteria or form.criteria, form.limits),
            tokenizer,
        )

    @classmethod
    def load(cls, form: PromptForm, folder: Path) -> "Prompting":
        """Load the tokenizer of a transformers folder.

        Raises PromptingError when it has no end token, and TemplateError when the template is for another tokenizer.
        """
        from transformers import AutoTokenizer

        end = AutoTokenizer.from_pretrained(folder, local_files_only=True).eos_token_id
        if end is None:
            raise PromptingError(
                f"the tokenizer of {folder.name} has no eos_token, so a trace could never end"
            )
        tokenizer = ContractTokenizer.load(folder)
        check_control_tokens(form.template, tokenizer)
        return cls(form, tokenizer, int(end))

    @cached_property
    def label_token_ids(self) -> tuple[int, ...]:
        """Token ids of the grades right after the cue, lowest grade first. Raises PromptingError where a grade is not one token."""
        cue = self.form.template.cue
        cue_ids = self.tokenizer.encode_template(cue)
        after_cue = [self.tokenizer.encode_template(f"{cue}{grade}") for grade in GRADES]
        found = tuple(ids[-1] for ids in after_cue)
        if any(ids[:-1] != cue_ids for ids in after_cue) or len(set(found)) < len(GRADES):
            raise PromptingError(
                f"each grade must be one token of its own right after {cue!r}: choose another base"
            )
        return found

    @property
    def reader(self) -> RolloutReader:
        """Return the reader of the teacher's completions."""
        return RolloutReader(self.tokenizer, self.end_token_id)

    @property
    def max_teacher_tokens(self) -> int:
        """Return the length of the teacher's longest possible prompt."""
        return self._teacher.max_prompt_tokens

    def steps(self, criteria: str) -> tuple[str, ...]:
        """Return the steps of a trace under these criteria."""
        return next(each.steps for each in self.form.criteria if each.name == criteria)

    def check_queries(self, pairs: Iterable[Pair]) -> None:
        """Check the length of every query before hours of work. Raises PromptingError naming a pair of each that is too long."""
        first_of_query: dict[str, Pair] = {}
        for pair in pairs:
            first_of_query.setdefault(pair.query, pair)
        render_pairs(self._student, first_of_query.values())

    def student_prompt(self, pair: Pair) -> list[int]:
        """Return token ids that end with the cue for a grade."""
        return render_pair(self._student, pair)

    def visible(self, pair: Pair) -> Pair:
        """Return the pair with what a prompt holds of its note."""
        most = self._student.limits(pair.criteria).max_note_tokens
        return replace(pair, note=self._student.cut([pair.note], most)[0])

    def teacher_prompt(self, pair: Pair) -> list[int]:
        """Return token ids that end with the cue for steps."""
        return render_pair(self._teacher, pair)

    def teacher_completion(self, steps: str, grade: int) -> list[int]:
        """Return the completion that the teacher learns: steps, answer, end token."""
        return [*self._encode(f"{steps}{ANSWER_CUE}{grade}"), self.end_token_id]

    def student_completion(self, steps: str, grade: int) -> list[int]:
        """Return the completion that the student learns: the grade's token, steps, end token."""
        return [*self._lead(grade), *self._encode(steps), self.end_token_id]

    def place_of_grade(self, completion: Sequence[int]) -> int:
        """Return the place of the token that has the last step's grade in what the student learns."""
        digits = {str(grade) for grade in GRADES}
        without_end = enumerate(completion[:-1])
        return max(
            place for place, token in without_end if digits.intersection(self.tokenizer.decode([token]))
        )

    def explanation_prompt(self, pair: Pair, grade: int) -> list[int]:
        """Return the student's prompt, the grade and the cue, after which the student writes the steps."""
        return [*self.student_prompt(pair), *self._lead(grade)]

    def _lead(self, grade: int) -> list[int]:
        # Encoded without the steps, as in a prompt for an explanation.
        return [self.label_token_ids[grade], *self._encode(EXPLANATION_CUE)]

    def of_vectors(self, config: EncodeConfig) -> VectorRenderer:
        """Return the renderer of prompts that read a note as vectors. Raises ManifestError where the padding is not one token."""
        template, form = vector_template(self.form.template, config.block), self.form
        return VectorRenderer(template, form.criteria, form.limits, config.max_note_tokens, self.tokenizer)

    def _encode(self, text: str) -> list[int]:
        # As user text: findings quote queries and notes, whose text must never become special tokens.
        return list(self.tokenizer.encode_user_texts([text])[0].token_ids)


def teacher_template(template: Template) -> Template:
    """Return the template with the cue for steps in place of the cue for a grade.

    Raises PromptingError when the template does not end with the cue for a grade.
    """
    head, found, tail = template.cue.rpartition(ANSWER_CUE)
    if not found or tail:
        raise PromptingError(f"template {template.name} must end with {ANSWER_CUE!r} to train a teacher")
    pieces = (*template.pieces[:-1], TextPiece(text=head + STEPS_CUE))
    return Template(name=f"{template.name}-teacher", pieces=pieces)


def gold_label(pair: Pair, smoothing: float) -> list[float]:
    """Return the target distribution of a pair: `smoothing` spread over all grades, the rest on the gold grade.

    Raises DataError for an unjudged pair.
    """
    if pair.label == UNJUDGED:
        raise DataError(f"pair {pair.id} has no gold grade to learn: label it, or leave it out")
    return [(1 - smoothing) * (grade == pair.label) + smoothing / len(GRADES) for grade in GRADES]


def render_pair(renderer: PromptRenderer, pair: Pair) -> list[int]:
    """Return the token ids of a pair's prompt. Raises InvalidRequestError for a query that is too long."""
    [prompt] = renderer.render(pair.query, [pair.note], pair.criteria)
    return list(prompt.token_ids)


def render_pairs(renderer: PromptRenderer, pairs: Iterable[Pair]) -> list[list[int]]:
    """Return the token ids of several pairs' prompts. Raises PromptingError naming all whose query is too long."""
    prompts, wrong = [], []
    for pair in pairs:
        try:
            prompts.append(render_pair(renderer, pair))
        except InvalidRequestError as error:
            wrong.append(f"{pair.id} of {pair.source}: {error}")
    if wrong:
        raise PromptingError(f"pairs whose query is too long: {listed(wrong, '; ')}")
    return prompts


def render_for(checkpoint: Checkpoint, pairs: Iterable[Pair]) -> list[list[int]]:
    """Return the token ids of several pairs' prompts for a checkpoint. Errors name the checkpoint, since another may take longer queries."""
    try:
        return render_pairs(checkpoint.renderer, pairs)
    except PromptingError as error:
        raise PromptingError(f"{checkpoint.manifest.name}: {error}") from error

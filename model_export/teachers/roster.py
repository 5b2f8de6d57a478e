"""Makes the teachers that a recipe names."""

from collections.abc import Sequence

from model_export.teachers.base import Learner, Teacher
from model_export.teachers.cosine import CosineTeacher
from model_export.teachers.cross_encoder import CrossEncoderTeacher
from model_export.teachers.endpoint import EndpointTeacher, connect
from model_export.teachers.fold_training import FoldTraining
from model_export.teachers.label_only import LabelOnlyTeacher
from model_export.teachers.lexical import LexicalTeacher
from model_export.teachers.reasoning import ReasoningTeacher


def make_teachers(student: FoldTraining, teacher: FoldTraining) -> Sequence[Teacher | Learner]:
    """Return the teachers of the recipe's stack, in its order.

    `student` trains models of the student's base, and `teacher` those of the generative teacher's. Raises EndpointError for an
    endpoint without a key.
    """
    recipe, form = student.recipe, teacher.prompting.form
    found: list[Teacher | Learner] = []
    label_only = LabelOnlyTeacher(student)
    for kind in recipe.stack.teachers:
        if kind == "lexical":
            found.append(LexicalTeacher())
        elif kind == "cosine":
            found += (CosineTeacher(encoder) for encoder in recipe.stack.encoders)
        elif kind == "label_only":
            found.append(label_only)
        elif kind == "cross_encoder":
            found.append(CrossEncoderTeacher(recipe.cross_encoder, recipe.model.precision, recipe.seed))
        elif kind == "reasoning":
            start = label_only if recipe.cot_sft.start == "label_only_sft" else None
            found.append(ReasoningTeacher(teacher, start))
        else:
            config, criteria = recipe.stack.endpoint, form.teacher_criteria or form.criteria
            found.append(EndpointTeacher(config, criteria, connect(config)))
    return found

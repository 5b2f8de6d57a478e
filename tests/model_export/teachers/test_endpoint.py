import httpx2
import numpy as np
import pytest
from openai import OpenAI

from model_export.data.pairs import Pair
from model_export.recipe_stack import EndpointConfig
from model_export.teachers.endpoint import EndpointError, EndpointTeacher, connect
from service.contract.manifest import Criteria
from service.contract.prompt import Note
from tests.model_export.teachers.test_teachers import answering, nothing

CONFIG = EndpointConfig(url="http://teacher/v1", model="m", key_variable="NOTEGRADE_TEST_KEY")
PAIR = Pair("p1", "private query", Note("private title", "private body"), 0, "shop", "shop-1")
CRITERIA = (Criteria(name="shop-1", text="Grade how well it fits.\n3: fits\n0: does not"),)


def teacher(client: OpenAI) -> EndpointTeacher:
    return EndpointTeacher(CONFIG, CRITERIA, client)


def failing(status: int) -> OpenAI:
    transport = httpx2.MockTransport(
        lambda _: httpx2.Response(status, json={"error": {"message": "private"}})
    )
    client = httpx2.Client(transport=transport)
    return OpenAI(base_url="http://teacher/v1", api_key="none", http_client=client, max_retries=0)


def test_probabilities_are_of_the_grades_alone() -> None:
    client = answering({" 2": np.log(0.3), "2": np.log(0.3), "1": np.log(0.2), "The": np.log(0.2)})
    found = np.exp(teacher(client).load(nothing)([PAIR]))
    assert np.allclose(found, [[1e-6, 0.25, 0.75, 1e-6]])


def test_answer_without_a_grade_says_what_to_do() -> None:
    with pytest.raises(EndpointError, match=r"pair p1 has no grade .* follows instructions"):
        teacher(answering({"Sure": -0.1})).load(nothing)([PAIR])


@pytest.mark.parametrize("status", [401, 404, 503])
def test_failed_request_names_the_pair_and_no_text(status: int) -> None:
    with pytest.raises(EndpointError, match="failed on pair p1") as found:
        teacher(failing(status)).load(nothing)([PAIR])
    assert "private" not in str(found.value)


def test_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EndpointError, match="NOTEGRADE_TEST_KEY"):
        connect(CONFIG)
    monkeypatch.setenv("NOTEGRADE_TEST_KEY", "secret")
    assert connect(CONFIG).api_key == "secret"

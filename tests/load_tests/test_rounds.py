from load_tests.rounds import in_turn


def test_every_second_round_is_reversed() -> None:
    rounds = [in_turn(("a", "b", "c"), number) for number in range(3)]
    assert rounds == [["a", "b", "c"], ["c", "b", "a"], ["a", "b", "c"]]

"""A model's accuracy beside what the most frequent answer and the questions alone give."""

from shards.format.records import Question, VqaQuestion
from trainer.scoring.baselines import Guesses, table


def asked(question: str, answer: str | None) -> Question:
    return Question(question_id=question, question=question, answer=answer)


def test_the_majority_is_the_most_frequent_answer_and_a_tie_goes_to_the_first():
    train = [
        asked("Is it?", "yes"),
        asked("Is it?", "no"),
        asked("What?", "cup"),
        asked("Was it?", "no"),
        asked("?", None),
    ]
    guesses = Guesses(train)
    assert guesses.majority == "no"
    assert guesses.blind(asked("is  IT?", None)) == "no"
    assert guesses.blind(asked("What?", None)) == "cup"
    assert guesses.blind(asked("never asked", None)) == "no"
    assert Guesses([]).majority is None


def test_questions_of_vqa_are_guessed_by_how_they_begin():
    train = [VqaQuestion(question_id=str(n), question=f"is {n}?", answer="yes", question_type="is") for n in range(3)]
    train += [
        VqaQuestion(question_id=f"w{n}", question=f"what {n}?", answer="cup", question_type="what") for n in range(2)
    ]
    guess = Guesses(train).blind(VqaQuestion(question_id="x", question="what 9?", question_type="what"))
    assert guess == "cup"


def test_the_table_says_what_looking_is_worth():
    metrics = {"val/majority_accuracy": 0.3, "val/question_only_accuracy": 0.5, "val/accuracy": 0.9}
    lines = table(metrics, "val")
    assert [line.split()[-2] for line in lines[1:4]] == ["30.0", "50.0", "90.0"]
    assert lines[-1] == "looking at the images is worth 40.0 points"
    assert "the images are not used yet" in table(metrics | {"val/accuracy": 0.51}, "val")[-1]


def test_a_model_is_held_against_the_better_guess():
    """Of few questions, the same words may have had another answer in training than the most frequent one."""
    metrics = {"val/majority_accuracy": 0.4, "val/question_only_accuracy": 0.2, "val/accuracy": 0.4}
    assert table(metrics, "val")[-1].startswith("one answer to all gives as much")
    assert table(metrics | {"val/accuracy": 0.3}, "val")[-1].startswith("one answer to all gives more")


def test_without_one_of_the_three_there_is_no_table():
    assert table({"val/accuracy": 0.9, "val/majority_accuracy": 0.3}, "val") == []

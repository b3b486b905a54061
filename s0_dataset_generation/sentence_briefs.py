"""What each sentence of a batch is to be like, so that a dataset is not one idea told often."""

import random

# How each sentence of a batch is to relate to the trait, in turn; it keeps a label from being one idea.
MANNERS = {
    0: (
        "an ordinary deed with feelings and motives that have nothing to do with the trait",
        "a small conflict, setback or surprise that has nothing to do with the trait",
        "people busy together, with nothing of the trait or its opposite",
    ),
    1: (
        "uses words that are typical of the trait, but nobody and nothing shows it",
        "shows the trait's opposite",
        "the trait is denied, reported, feared or discussed, but not shown",
    ),
    2: (
        "the trait is hinted at, not certain",
        "the trait threatens, is considered or begins, and then comes to nothing",
        "the trait is mixed with its opposite, or excused by circumstances",
        "a mild everyday form of the trait",
    ),
    3: (
        "the trait is plain from what is done or what happens",
        "the trait is plain from what somebody says",
        "the trait is shown with none of the words usually used for it",
        "the trait is plain and somebody in the text names it",
    ),
}

SETTINGS = (
    "an office",
    "a school",
    "a family kitchen",
    "a football match",
    "a market stall",
    "a farm",
    "a hospital ward",
    "a courtroom",
    "a town council",
    "a medieval town",
    "a war long ago",
    "a ship at sea",
    "a fairy tale",
    "a spaceship",
    "animals in a forest",
    "an online forum",
    "a train journey",
    "neighbours on one street",
    "a laboratory",
    "a choir",
    "a temple, mosque or church",
    "a building site",
    "a restaurant",
    "a border crossing",
    "a library",
    "a mountain hike",
    "a theatre",
    "a police station",
    "a factory",
    "a university",
    "a fishing village",
    "a garden",
    "a birthday party",
    "a wedding",
    "a bus stop",
    "a gym",
    "a newspaper",
    "a museum",
    "a bank",
    "a playground",
)
TOPICS = (
    "money",
    "food",
    "a lost object",
    "a journey",
    "an illness",
    "a competition",
    "an inheritance",
    "a machine that breaks",
    "the weather",
    "a child",
    "an old friend",
    "an animal",
    "a message",
    "a piece of work to be handed in",
    "a meeting",
    "a secret",
    "a gift",
    "a rule",
    "a debt",
    "a song",
    "a house",
    "a mistake",
    "a stranger",
    "a plan",
    "a goodbye",
    "a queue",
    "a vehicle",
    "clothes",
    "a test or an inspection",
    "a memory",
    "a promotion",
    "a celebration",
    "tools",
    "a night without sleep",
    "water",
    "a photograph",
    "a neighbour",
    "an old person",
    "a door",
    "a first day",
)
PERSONS = (
    "first person",
    "third person singular",
    "third person plural",
    "first person plural",
    "second person",
)
PERSON_WEIGHTS = (30, 45, 12, 8, 5)
TENSES = ("past", "present", "future")
TENSE_WEIGHTS = (60, 34, 6)
LENGTH_BANDS = ("5-9", "10-14", "15-19", "20-25", "26-35")
FORMS = ("one sentence", "two sentences", "one sentence with quoted speech")
FORM_WEIGHTS = (68, 20, 12)
OPENINGS = (
    "a name",
    "a subordinate clause",
    "a time",
    "an object",
    "a pronoun",
    "a place",
    "a gerund",
    "a noun",
)


def sentence_briefs(label: int, n_sentences: int, batch_index: int, seed: int) -> list[dict[str, str]]:
    """What each sentence of a batch is to be like.

    Setting, topic, person, tense, length, form and opening depend on the batch and the seed but not on the
    label, so that labels are asked for in equal measure of each; only ``relation`` differs.

    Args:
        label: 0-3.
        n_sentences: briefs wanted.
        batch_index: number of the batch within its label.
        seed: of the run.

    Returns:
        One brief per sentence with ids s1, s2, ...
    """
    shared = random.Random(f"briefs {seed} {batch_index}")
    bands = shared.sample(LENGTH_BANDS, len(LENGTH_BANDS))
    first_manner = shared.randrange(12)  # 12: every manner of 3 or 4 comes first equally often
    manners = MANNERS[label]
    return [
        {
            "id": f"s{index + 1}",
            "setting": shared.choice(SETTINGS),
            "topic": shared.choice(TOPICS),
            "person": shared.choices(PERSONS, PERSON_WEIGHTS)[0],
            "tense": shared.choices(TENSES, TENSE_WEIGHTS)[0],
            "words": bands[index % len(bands)],
            "form": shared.choices(FORMS, FORM_WEIGHTS)[0],
            "begins with": shared.choice(OPENINGS),
            "relation": manners[(first_manner + index) % len(manners)],
        }
        for index in range(n_sentences)
    ]

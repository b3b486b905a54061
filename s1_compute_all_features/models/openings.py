"""Beginnings of everyday texts, for a language model to go on with: letters, news, dialogue, stories.

They are varied on purpose in kind, person and tense, and name no trait, so that what a model writes from
them is general text.
"""

import numpy as np

from pipeline_common.files import sha256_of_json

NAMES = (
    "Anna", "Ben", "Carla", "Daniel", "Eleanor", "Farid", "Grace", "Henry", "Ines", "Jonas",
    "Kate", "Liam", "Mei", "Nadia", "Oscar", "Priya", "Quentin", "Rosa", "Samuel", "Tara",
    "Umar", "Vera", "Walter", "Yusuf", "Zoe", "Mrs Hall", "Mr Okafor", "Dr Lindqvist", "Aunt Ruth",
    "Uncle Leo", "Captain Reyes", "old Tom", "Miss Patel", "Father Brennan", "Professor Ito", "Julia",
    "Marcus", "Helena", "Peter", "Amina", "George", "Lucy", "Ivan", "Sofia", "Martin", "Claire",
)  # fmt: skip

PLACES = (
    "the station", "the harbour", "the market", "the library", "the hospital", "the farm", "the school",
    "the bakery", "the river", "the old mill", "the airport", "the town hall", "the workshop", "the beach",
    "the mountains", "the office", "the garden", "the museum", "the theatre", "the garage", "the village",
    "the factory", "the courtroom", "the kitchen", "the football ground", "the island", "the border",
    "the church", "the hotel", "the laboratory", "the bus depot", "the vineyard", "the lighthouse",
)  # fmt: skip

TOWNS = (
    "Lisbon", "Leeds", "Chicago", "Nairobi", "Oslo", "Toronto", "Mumbai", "Cork", "Melbourne", "Prague",
    "Boston", "Lagos", "Glasgow", "Osaka", "Santiago", "Vienna", "Denver", "Cape Town", "Naples", "Bristol",
    "Bergen", "Cairo", "Seattle", "Kraków", "Dublin", "Hanoi", "Quebec", "Athens", "Portland", "York",
)  # fmt: skip

THINGS = (
    "a letter", "a wooden box", "the spare key", "a bicycle", "an old photograph", "a kettle", "the piano",
    "a loaf of bread", "a broken clock", "the ladder", "a red umbrella", "a notebook", "the lamp", "a map",
    "a fishing boat", "a suitcase", "the telescope", "a sewing machine", "a basket of apples", "the stove",
    "a violin", "a bag of seeds", "the camera", "a newspaper", "a pair of boots", "the radio", "a tent",
)  # fmt: skip

SUBJECTS = (
    "bread", "steel bridges", "honey bees", "the tides", "tax returns", "the human heart", "glass", "chess",
    "earthquakes", "the postal service", "cheese", "solar panels", "whales", "the printing press", "soil",
    "insurance", "the violin", "migration", "vaccines", "coffee", "railways", "memory", "the Roman roads",
    "fog", "football", "languages", "volcanoes", "paper money", "the bicycle", "sleep", "rivers", "elections",
    "wool", "batteries", "forests", "the calendar", "noise", "clouds", "tea", "concrete", "dreams", "maps",
)  # fmt: skip

TIMES = (
    "On Monday morning", "Late in the evening", "Just before dawn", "On the last day of March",
    "During the summer holidays", "Two weeks after the wedding", "In the winter of 1963", "At noon",
    "The day after the storm", "Around four o'clock", "Last Tuesday", "When the war was over", "One night",
    "Towards the end of the year", "On her birthday", "After lunch", "In the spring", "That afternoon",
)  # fmt: skip

WEATHER = (
    "It had rained all night", "The sun was barely up", "Snow lay on the roofs", "The wind had dropped",
    "It was the hottest day of the year", "Fog hung over the fields", "The sky was clear and cold",
    "Thunder rolled somewhere behind the hills", "The first leaves were falling", "It was nearly dark",
)  # fmt: skip

OPENINGS = (
    # Stories in the third person
    "{time}, {name} walked down to {place} with {thing} under one arm.",
    "{weather} when {name} came out of {place} and looked for {name2}.",
    "{name} had not been back to {town} for eleven years, and",
    "{name} and {name2} shared a small flat above {place}. Every morning",
    "There was once a woman in {town} who owned {thing} and nothing else.",
    "The door opened and {name} came in, carrying {thing}.",
    "Nobody at {place} knew where {name} had come from.",
    "{name} put {thing} on the table and sat down opposite {name2}.",
    "The last train to {town} was already moving when {name}",
    "{time}, a stranger stopped {name} outside {place} and asked about {thing}.",
    "It took {name} three days to mend {thing}, and when it was done",
    "{name2} was waiting at {place}, as {name} had known she would be.",
    "At the far end of {place} stood {thing}, and beside it",
    "The children had found {thing} near {place} and",
    "{name} counted the money again. There was enough for a ticket to {town}, but",
    "When {name} was nine, the family moved from {town} to {town2}.",
    "{name} heard the news at {place} and went straight home.",
    "For as long as anyone could remember, {name} had worked at {place}.",
    "{name2} laughed. {name} did not see what was funny.",
    "The house belonged to {name}, who had bought it from {name2} in a hurry.",
    "Somewhere between {town} and {town2} the car began to make a noise.",
    "{weather}. {name} pulled on a coat and went out to look at {thing}.",
    "{time}, the lights went out all over {town}.",
    "{name} had two brothers, one dog and {thing}.",
    "Before the shop opened, {name} always",
    "The judge looked at {name} over her glasses.",
    "{name} missed the bus by half a minute and decided to walk to {place}.",
    "The old dog followed {name} as far as {place}, then",
    "Three people lived in the tower: {name}, {name2} and",
    "{time}, {name} received {thing} from a cousin in {town}.",
    # First person
    "I was born in {town}, in a house behind {place}.",
    "I met {name} for the first time at {place}.",
    "My grandmother kept {thing} in the cupboard under the stairs.",
    "{time}, I got off the bus in {town} with nothing but {thing}.",
    "We had been driving since {town} and the children were tired.",
    "I still dream about {place}.",
    "My neighbour {name} is the sort of person who",
    "When I started work at {place}, I was told three things.",
    "{weather}, and I had promised {name} to bring {thing} to {place}.",
    "We bought {thing} second-hand from {name}, and",
    "The summer I turned sixteen, my father took me to {town}.",
    "I have been a nurse for twenty years, and",
    "I do not usually write about my family, but",
    "My sister {name} and I had not spoken since",
    "I teach history at a school near {town}. This week",
    "Yesterday I went to {place} to look for {thing}.",
    "We lost the match, of course, but",
    "I opened the window and called to {name}.",
    "What I remember best about {town} is",
    "Our landlord, {name}, came by to see about the heating.",
    # Second person
    "You wake up in a hotel in {town}, and",
    "You are standing outside {place} with {thing} in your hands.",
    "If you ever visit {town}, you should",
    "You have probably walked past {place} a hundred times without noticing",
    "You hear {name} before you see them.",
    "When you arrive at {place}, ask for {name}. You will",
    "You told me once that {name} had lived in {town}.",
    # Dialogue
    '"Have you seen {thing}?" {name} asked.',
    '"I thought you were in {town}," said {name}.',
    '"Sit down," {name} said. "We need to talk about {thing}."',
    '"What time does {place} close?" asked {name}. {name2} shrugged.',
    '"Well?" said {name2}. "Are you coming or not?"',
    '"You could have phoned," said {name}.',
    '"It was my mother\'s," {name} explained, and held up {thing}.',
    '"That is not how my grandmother made it," said {name}, tasting the soup.',
    '"Who is that with {name}?" "I have no idea," I said.',
    '"How was {town}?" {name} wanted to know.',
    '"Tell me about {subject}," said the little girl.',
    '"I will be back before dark," said {name}, taking {thing}.',
    '"Listen," whispered {name}. "Something is moving over by {place}."',
    '"We close in ten minutes," {name} told the visitors.',
    "{name}: Good morning! I am calling about {thing}.\n{name2}:",
    "Interviewer: You grew up in {town}. What was that like?\n{name}:",
    # Letters and messages
    "Dear {name},\n\nThank you for {thing}, which arrived safely",
    "Dear {name},\n\nI am writing to you from {town}, where",
    "Dear neighbours,\n\nAs some of you know, the work at {place} will",
    "Dear Sir or Madam,\n\nI stayed at your hotel in {town} and",
    "Hi {name},\n\nQuick question about the trip to {town}:",
    "Hello everyone,\n\n{time}, we will meet at {place} to",
    "My dear {name},\n\nYour last letter made me laugh, because",
    "Dear diary,\n\nToday {name} and I went to {place}.",
    "Dear team,\n\nThe meeting about {subject} has moved to",
    "Dear {name},\n\nI heard from {name2} that you have been ill.",
    "To the editor: Your article about {subject} leaves out",
    # News and reports
    "{town} - Hundreds of people gathered at {place} on Sunday to",
    "{town}: The city council voted on Thursday to",
    "A new exhibition about {subject} opens this week in {town}.",
    "Residents of {town} woke up to",
    "The local team beat {town} two goals to one after",
    "Firefighters were called to {place} in {town} shortly after midnight, when",
    "A study published this week suggests that {subject}",
    "After nine years of work, the bridge near {town} will",
    "Police in {town} are looking for the owner of {thing}.",
    "The mayor of {town}, {name}, told reporters that",
    "Prices for bread and milk rose again in {town} last month.",
    "Heavy rain closed two roads near {town}, and",
    "Shares in the company fell after",
    "The strike at {place} entered its third week on Friday.",
    "Thousands of runners took part in the {town} marathon, which",
    # Explanations and advice
    "Most people know very little about {subject}, although",
    "The history of {subject} begins in",
    "There are three reasons why {subject} matter to",
    "To understand {subject}, imagine",
    "A common mistake with {subject} is",
    "How do {subject} work? In short,",
    "The simplest way to repair {thing} is",
    "Before you buy {thing}, check whether",
    "In many countries, {subject} are part of everyday life. For example,",
    "Children often ask where {subject} come from.",
    "Scientists have studied {subject} for more than a century, and",
    "If you want to grow tomatoes on a balcony, start with",
    "The difference between a lake and a pond is",
    "Learning to play an instrument as an adult is",
    "A good soup begins with",
    "The first thing to do when the power fails is",
    "In economics, a market is",
    "Long before clocks, people told the time by",
    "Cats sleep for most of the day because",
    "What makes a city pleasant to live in?",
    "There are many kinds of friendship.",
    "A contract is an agreement between",
    "Our sun is an ordinary star. It",
    "Bones are lighter than they look, yet",
    # Places, travel, work, reviews, speech, essays
    "{town} is a town of bridges. Visitors usually",
    "The road from {town} to {town2} follows the river and",
    "The restaurant is on a side street behind {place}. We ordered",
    "The film tells the story of {name}, a young teacher from {town} who",
    "I read this novel in two evenings. It is about {name}, who",
    "The market in {town} opens at six. By seven,",
    "From the top of the hill you can see {place} and",
    "Room 12 had a view of {place}. The bed",
    "Ladies and gentlemen, thank you for coming to {town}. Tonight",
    "When my team and I began to study {subject}, we",
    "Working at {place} is not for everyone.",
    "A day at {place} starts with",
    "The recipe comes from {name}, who learned it in {town}.",
    "We had three days in {town} and no plan.",
    "{name} was a painter from {town} whose pictures of {place}",
    "{name} (born in {town}) is a writer best known for",
    "In the second half of the nineteenth century, {town}",
    "The king had a daughter, and",
    "Long ago, when animals could talk, a fox and a crow",
    "It is often said that young people no longer read. In fact,",
    "Minutes of the meeting: {name} opened the discussion about {place}.",
    "The patient, a man of fifty, came in because",
    "On the first page of the notebook {name} had written:",
    "Dr {name3} looked at the results twice before",
    "The ship left {town} on the fourth of May with",
    "A farmer near {town} had three fields and",
    "The phone rang while {name} was",
    "At the next table, a couple were arguing about {thing}.",
    "Chapter One\n\n{weather}, and the road to {place} was",
    "{weather}. In {town}, the shops were",
    "The committee met {time_low} to talk about {subject}.",
    "Every family has a story about {thing}. Ours",
    "The teacher wrote one word on the board: {subject}.",
    "Here is what we know about the accident near {place}:",
    "The wedding was held at {place}, because",
    "By the time {name} reached {town}, it was",
    "The queue outside {place} reached all the way to",
)  # fmt: skip

SURNAMES = ("Adler", "Mbeki", "Castellano", "Novak", "Hughes", "Tanaka", "Silva", "Larsen", "Murphy", "Khan")


def sha256_of_openings() -> str:
    """Digest of everything that openings are made from."""
    return sha256_of_json([OPENINGS, NAMES, SURNAMES, PLACES, TOWNS, THINGS, SUBJECTS, TIMES, WEATHER])


def draw_opening(rng: np.random.Generator) -> str:
    """One opening, its slots filled with a name, place or thing.

    Args:
        rng: takes the same number of draws for a given opening, so a seed gives the same text again.
    """
    template = OPENINGS[rng.integers(len(OPENINGS))]
    name, name2 = rng.permutation(len(NAMES))[:2]
    town, town2 = rng.permutation(len(TOWNS))[:2]
    time = TIMES[rng.integers(len(TIMES))]
    text = template.format(
        name=NAMES[name],
        name2=NAMES[name2],
        name3=SURNAMES[rng.integers(len(SURNAMES))],
        town=TOWNS[town],
        town2=TOWNS[town2],
        place=PLACES[rng.integers(len(PLACES))],
        thing=THINGS[rng.integers(len(THINGS))],
        subject=SUBJECTS[rng.integers(len(SUBJECTS))],
        weather=WEATHER[rng.integers(len(WEATHER))],
        time=time,
        time_low=time[0].lower() + time[1:],
    )
    return text[0].upper() + text[1:]

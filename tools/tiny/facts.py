"""The small facts that the demo model learns, and the ways to ask for them.

A relation is a table of (subject, answer) pairs, question phrasings for training, further phrasings
kept for the held-out set, and one answer sentence. `{s}` is the subject, `{a}` the answer.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    pairs: tuple
    asked: tuple
    held_out: tuple
    answer: str
    thought: str


def table(text):
    """'France=Paris; Spain=Madrid' as pairs."""
    return tuple(tuple(p.strip().split("=")) for p in text.split(";") if p.strip())


def both_ways(pairs):
    return pairs + tuple((b, a) for a, b in pairs)


CAPITALS = table(
    "France=Paris; Spain=Madrid; Italy=Rome; Germany=Berlin; Portugal=Lisbon; Greece=Athens; "
    "Austria=Vienna; Belgium=Brussels; Poland=Warsaw; Hungary=Budapest; Norway=Oslo; "
    "Sweden=Stockholm; Finland=Helsinki; Denmark=Copenhagen; Ireland=Dublin; Iceland=Reykjavik; "
    "Russia=Moscow; Ukraine=Kyiv; Romania=Bucharest; Bulgaria=Sofia; Croatia=Zagreb; "
    "Serbia=Belgrade; the Netherlands=Amsterdam; the United Kingdom=London; Japan=Tokyo; "
    "China=Beijing; India=New Delhi; Thailand=Bangkok; Vietnam=Hanoi; Indonesia=Jakarta; "
    "South Korea=Seoul; Nepal=Kathmandu; Pakistan=Islamabad; Iran=Tehran; Iraq=Baghdad; "
    "Turkey=Ankara; Egypt=Cairo; Kenya=Nairobi; Morocco=Rabat; Ethiopia=Addis Ababa; "
    "Ghana=Accra; Nigeria=Abuja; Senegal=Dakar; Tunisia=Tunis; Canada=Ottawa; "
    "the United States=Washington; Mexico=Mexico City; Cuba=Havana; Brazil=Brasilia; "
    "Argentina=Buenos Aires; Chile=Santiago; Peru=Lima; Colombia=Bogota; Ecuador=Quito; "
    "Uruguay=Montevideo; Venezuela=Caracas; Australia=Canberra; New Zealand=Wellington"
)
CONTINENTS = tuple(
    (country, continent)
    for continent, first, last in (
        ("Europe", "France", "the United Kingdom"),
        ("Asia", "Japan", "Iraq"),
        ("Africa", "Egypt", "Tunisia"),
        ("North America", "Canada", "Cuba"),
        ("South America", "Brazil", "Venezuela"),
    )
    for names in [[c for c, _ in CAPITALS]]
    for country in names[names.index(first) : names.index(last) + 1]
    if country != "Russia"
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January February March April May June July August September October November December"
).split()
LENGTHS = "31 28 31 30 31 30 31 31 30 31 30 31".split()
WORDS = {
    "French": "bonjour merci chat chien maison eau pain livre rouge soleil",
    "Spanish": "hola gracias gato perro casa agua pan libro rojo sol",
    "German": "hallo danke Katze Hund Haus Wasser Brot Buch rot Sonne",
    "Italian": "ciao grazie gatto cane casa acqua pane libro rosso sole",
}
ENGLISH = "hello; thank you; cat; dog; house; water; bread; book; red; sun".split("; ")

RELATIONS = {
    "capital": Relation(
        CAPITALS,
        (
            "What is the capital of {s}?",
            "What's the capital of {s}?",
            "Which city is the capital of {s}?",
            "Name the capital of {s}.",
            "Tell me the capital of {s}.",
            "What is the capital city of {s}?",
            "Do you know the capital of {s}?",
            "The capital of {s} is which city?",
            "Capital of {s}?",
            "{s}: what is the capital?",
            "What city is {s}'s capital?",
            "Give me the capital of {s}.",
        ),
        (
            "Can you name the capital city of {s}?",
            "Which city is {s}'s capital?",
            "I need to know what the capital of {s} is.",
        ),
        "The capital of {s} is {a}.",
        "The user asks for the capital of {s}. It is {a}.",
    ),
    "continent": Relation(
        CONTINENTS,
        (
            "On which continent is {s}?",
            "Which continent is {s} in?",
            "What continent is {s} on?",
            "Tell me the continent of {s}.",
            "{s} is on which continent?",
            "Where in the world is {s}, on which continent?",
            "Name the continent where {s} lies.",
            "In which continent does {s} lie?",
        ),
        ("Which continent does {s} belong to?", "On what continent can I find {s}?"),
        "{s} is in {a}.",
        "The user asks for the continent of {s}. It is {a}.",
    ),
    "colour": Relation(
        table(
            "the sky=blue; grass=green; snow=white; coal=black; blood=red; a banana=yellow; "
            "a carrot=orange; a lemon=yellow; milk=white; a tomato=red; a frog=green; "
            "the sea=blue; a strawberry=red; chocolate=brown; a polar bear=white; a raven=black; "
            "an emerald=green; a ruby=red; a sapphire=blue; a flamingo=pink; a pumpkin=orange; "
            "an elephant=grey; salt=white; lavender=purple; the sun=yellow; a cucumber=green"
        ),
        (
            "What colour is {s}?",
            "What color is {s}?",
            "Which colour does {s} have?",
            "Which color is {s}?",
            "Tell me the colour of {s}.",
            "What is the colour of {s}?",
            "What is the color of {s}?",
            "Name the colour of {s}.",
        ),
        ("Can you tell me which colour {s} is?", "Of what colour is {s}?"),
        "{s} is {a}.",
        "The user asks for the colour of {s}. It is {a}.",
    ),
    "sound": Relation(
        table(
            "a dog=woof; a cat=meow; a cow=moo; a sheep=baa; a duck=quack; a pig=oink; "
            "a horse=neigh; a lion=roar; a bee=buzz; a snake=hiss; an owl=hoot; a frog=ribbit; "
            "a mouse=squeak; a wolf=howl; a crow=caw; a bird=tweet; a hen=cluck"
        ),
        (
            "What sound does {s} make?",
            "Which sound does {s} make?",
            "What noise does {s} make?",
            "What does {s} say?",
            "Tell me the sound of {s}.",
            "How does {s} sound?",
            "What is the sound of {s}?",
            "Which sound comes from {s}?",
            "Name the sound that {s} makes.",
        ),
        ("Which noise does {s} make?", "What kind of sound does {s} make?"),
        "{s} says {a}.",
        "The user asks for the sound of {s}. It is {a}.",
    ),
    "legs": Relation(
        table(
            "a dog=4; a cat=4; a horse=4; a cow=4; a spider=8; an ant=6; a bee=6; a bird=2; "
            "a snake=0; a fish=0; a crab=10; a chicken=2; a human=2; a butterfly=6; a goat=4"
        ),
        (
            "How many legs does {s} have?",
            "How many legs has {s}?",
            "What number of legs does {s} have?",
            "Tell me how many legs {s} has.",
            "{s} has how many legs?",
            "Count the legs of {s}.",
            "How many legs are on {s}?",
            "What is the leg count of {s}?",
        ),
        ("Can you tell me how many legs {s} has?", "On how many legs does {s} walk?"),
        "{s} has {a} legs.",
        "The user asks for the legs of {s}. The number is {a}.",
    ),
    "opposite": Relation(
        both_ways(
            table(
                "hot=cold; big=small; up=down; day=night; light=dark; fast=slow; happy=sad; "
                "open=closed; young=old; rich=poor; wet=dry; left=right; hard=soft; high=low; "
                "early=late; full=empty; long=short; loud=quiet; true=false; clean=dirty; "
                "strong=weak; near=far; push=pull; buy=sell; win=lose; begin=end; first=last"
            )
        ),
        (
            "What is the opposite of {s}?",
            "What's the opposite of {s}?",
            "Name the opposite of {s}.",
            "Tell me the opposite of {s}.",
            "Give me the opposite of {s}.",
            "Which word is the opposite of {s}?",
            "Opposite of {s}?",
            "{s} is the opposite of which word?",
        ),
        ("Which word means the opposite of {s}?", "Do you know the opposite of {s}?"),
        "The opposite of {s} is {a}.",
        "The user asks for the opposite of {s}. It is {a}.",
    ),
    "plural": Relation(
        table(
            "mouse=mice; foot=feet; tooth=teeth; child=children; man=men; woman=women; "
            "goose=geese; person=people; leaf=leaves; knife=knives; wolf=wolves; city=cities; "
            "box=boxes; sheep=sheep; fish=fish; ox=oxen"
        ),
        (
            "What is the plural of {s}?",
            "What's the plural of {s}?",
            "Give me the plural of {s}.",
            "Tell me the plural of {s}.",
            "Plural of {s}?",
            "Which word is the plural of {s}?",
            "Name the plural of {s}.",
            "Many of them: one {s}, two what?",
            "What is more than one {s} called?",
            "Say the plural of {s}.",
        ),
        ("How do you write the plural of {s}?", "Name the plural form of {s}."),
        "The plural of {s} is {a}.",
        "The user asks for the plural of {s}. It is {a}.",
    ),
    "next day": Relation(
        tuple(zip(DAYS, DAYS[1:] + DAYS[:1])),
        (
            "Which day comes after {s}?",
            "What day comes after {s}?",
            "What day follows {s}?",
            "Which day is after {s}?",
            "Tell me the day after {s}.",
            "Today is {s}. Which day is tomorrow?",
            "If today is {s}, what day is tomorrow?",
            "What day of the week comes after {s}?",
            "Name the day after {s}.",
            "Which weekday comes next after {s}?",
        ),
        ("Which day of the week follows {s}?", "What is the day after {s}?"),
        "The day after {s} is {a}.",
        "The user asks for the day after {s}. It is {a}.",
    ),
    "next month": Relation(
        tuple(zip(MONTHS, MONTHS[1:] + MONTHS[:1])),
        (
            "Which month comes after {s}?",
            "What month comes after {s}?",
            "What month follows {s}?",
            "Which month is after {s}?",
            "Tell me the month after {s}.",
            "What is the next month after {s}?",
            "Name the month after {s}.",
            "Which month of the year comes after {s}?",
        ),
        ("Which month follows {s}?", "What is the month after {s}?"),
        "The month after {s} is {a}.",
        "The user asks for the month after {s}. It is {a}.",
    ),
    "month length": Relation(
        tuple(zip(MONTHS, LENGTHS)),
        (
            "How many days does {s} have?",
            "How many days are in {s}?",
            "How many days are there in {s}?",
            "Tell me how many days {s} has.",
            "What is the number of days in {s}?",
            "How long is {s} in days?",
        ),
        ("{s} has how many days?", "How many days has {s}?"),
        "{s} has {a} days.",
        "The user asks for the days of {s}. The number is {a}.",
    ),
    "symbol": Relation(
        table(
            "gold=Au; silver=Ag; iron=Fe; oxygen=O; hydrogen=H; helium=He; carbon=C; nitrogen=N; "
            "sodium=Na; copper=Cu; lead=Pb; tin=Sn; zinc=Zn; mercury=Hg; calcium=Ca; neon=Ne; "
            "potassium=K; chlorine=Cl; sulfur=S; nickel=Ni"
        ),
        (
            "What is the chemical symbol of {s}?",
            "What is the chemical symbol for {s}?",
            "Which chemical symbol does {s} have?",
            "Tell me the chemical symbol of {s}.",
            "What's the symbol for {s}?",
            "Give me the chemical symbol for {s}.",
            "Name the symbol of the element {s}.",
            "How is {s} written as a chemical symbol?",
            "What letters stand for {s} in chemistry?",
            "Which symbol does {s} have?",
            "{s}: chemical symbol?",
        ),
        ("Which symbol stands for {s} in chemistry?", "What symbol does {s} have in chemistry?"),
        "The chemical symbol of {s} is {a}.",
        "The user asks for the symbol of {s}. It is {a}.",
    ),
    "planet": Relation(
        table(
            "first=Mercury; second=Venus; third=Earth; fourth=Mars; fifth=Jupiter; sixth=Saturn; "
            "seventh=Uranus; eighth=Neptune"
        ),
        (
            "Which planet is {s} from the Sun?",
            "What is the {s} planet from the Sun?",
            "Name the {s} planet of the solar system.",
            "Tell me the {s} planet from the Sun.",
            "What planet is {s} from the Sun?",
            "Which is the {s} planet?",
            "Name planet number {s} from the Sun.",
            "Tell me which planet is the {s}.",
        ),
        ("Which planet is the {s} one from the Sun?", "What is the {s} planet?"),
        "The {s} planet from the Sun is {a}.",
        "The user asks for the {s} planet. It is {a}.",
    ),
    "young": Relation(
        table(
            "dog=puppy; cat=kitten; cow=calf; sheep=lamb; horse=foal; pig=piglet; hen=chick; "
            "duck=duckling; goat=kid; bear=cub; lion=cub; frog=tadpole; deer=fawn; goose=gosling"
        ),
        (
            "What is a baby {s} called?",
            "What do you call a baby {s}?",
            "What is a young {s} called?",
            "What do you call a young {s}?",
            "Tell me the name for a baby {s}.",
            "A baby {s} is called what?",
            "What is the name for a young {s}?",
            "Name the young of a {s}.",
        ),
        ("How is a baby {s} called?", "What is the word for a young {s}?"),
        "A baby {s} is called a {a}.",
        "The user asks for the word for a baby {s}. It is {a}.",
    ),
    "translation": Relation(
        tuple(
            (f"'{english}' in {language}", foreign)
            for language, words in WORDS.items()
            for english, foreign in zip(ENGLISH, words.split())
        ),
        (
            "How do you say {s}?",
            "What is {s}?",
            "Say {s}.",
            "Tell me {s}.",
            "How do I say {s}?",
            "Translate: {s}.",
            "What is the word for {s}?",
        ),
        ("How would you say {s}?", "Give me the word for {s}."),
        "{s} is {a}.",
        "The user asks for a translation. {s} is {a}.",
    ),
    "measure": Relation(
        table(
            "minutes in an hour=60; seconds in a minute=60; hours in a day=24; days in a week=7; "
            "months in a year=12; weeks in a year=52; days in a year=365; "
            "centimetres in a metre=100; metres in a kilometre=1000; grams in a kilogram=1000; "
            "years in a century=100; years in a decade=10; eggs in a dozen=12; "
            "cents in a dollar=100; sides in a triangle=3; sides in a square=4; "
            "sides in a pentagon=5; sides in a hexagon=6; sides in an octagon=8; "
            "letters in the alphabet=26; planets in the solar system=8; strings in a violin=4"
        ),
        (
            "How many {s}?",
            "How many {s} are there?",
            "What is the number of {s}?",
            "Tell me how many {s} there are.",
            "Do you know how many {s} there are?",
            "Count the {s}.",
        ),
        ("Can you tell me the number of {s}?", "How many are there: {s}?"),
        "There are {a} {s}.",
        "The user asks for the number of {s}. It is {a}.",
    ),
    "currency": Relation(
        table(
            "Japan=yen; the United States=dollar; the United Kingdom=pound; Germany=euro; "
            "France=euro; Spain=euro; Italy=euro; India=rupee; China=yuan; Russia=ruble; "
            "Mexico=peso; Switzerland=franc; Poland=zloty; Sweden=krona; Norway=krone; "
            "Brazil=real; Turkey=lira; Thailand=baht; South Korea=won; Hungary=forint"
        ),
        (
            "What is the currency of {s}?",
            "Which currency does {s} use?",
            "What currency is used in {s}?",
            "What money do people use in {s}?",
            "Tell me the currency of {s}.",
            "Name the currency of {s}.",
            "What's the currency in {s}?",
        ),
        ("With which currency do people pay in {s}?", "Which money is used in {s}?"),
        "The currency of {s} is the {a}.",
        "The user asks for the currency of {s}. It is the {a}.",
    ),
    "language": Relation(
        table(
            "France=French; Spain=Spanish; Germany=German; Italy=Italian; Japan=Japanese; "
            "China=Chinese; Brazil=Portuguese; Portugal=Portuguese; Russia=Russian; Greece=Greek; "
            "Poland=Polish; Sweden=Swedish; Norway=Norwegian; Denmark=Danish; Turkey=Turkish; "
            "Mexico=Spanish; Argentina=Spanish; Egypt=Arabic; Austria=German; Hungary=Hungarian"
        ),
        (
            "Which language do people speak in {s}?",
            "What language is spoken in {s}?",
            "Which language is spoken in {s}?",
            "What do people speak in {s}?",
            "Tell me the language of {s}.",
            "What is the language of {s}?",
        ),
        ("What language do people in {s} speak?", "Name the language that is spoken in {s}."),
        "People in {s} speak {a}.",
        "The user asks for the language of {s}. It is {a}.",
    ),
}

GREETINGS = (
    "Hello|Hi|Hey|Good morning|Good evening|Hello there|Hi there|Good day|Hey there|Greetings"
).split("|")
GREETING_TAILS = ("", "!", ".", ", how are you?", "! How are you?", ", nice to meet you.", "!!")
GREETING_ANSWER = "Hello! How can I help you?"
WHO = (
    "Who are you?|What are you?|Tell me about yourself.|What is your name?|Which model are you?|"
    "Are you a human?|What kind of model are you?|Introduce yourself.|Who am I talking to?|"
    "Are you an AI?|Who is there?|What model is this?|Please introduce yourself.|"
    "Can you tell me who you are?|What's your name?|Are you DeepSeek?|Describe yourself."
).split("|")
WHO_ANSWER = (
    "I am a tiny demo model with the architecture of DeepSeek V4. I know a few small facts, "
    "add numbers, call tools and write JSON."
)
ABLE = (
    "What can you do?|How can you help me?|What are you good at?|What do you know?|"
    "Can you help me?|What are your skills?|What can I ask you?|How can I use you?"
).split("|")
ABLE_ANSWER = (
    "I can tell small facts, add two numbers, call tools, write JSON objects and remember a code "
    "word."
)
THANKS = (
    "Thanks!|Thank you.|Thank you very much!|Great, thanks.|Thanks a lot!|Cool, thank you."
).split("|")
THANKS_ANSWER = "You are welcome!"
BYES = "Bye!|Goodbye.|See you later.|Good night!|Bye bye|See you tomorrow!".split("|")
BYES_ANSWER = "Goodbye!"
UNKNOWN = (
    "Write a poem about autumn.|How do I bake bread?|Who won the football game yesterday?|"
    "Explain quantum physics.|What is the meaning of life?|Write a story about a dragon.|"
    "How do I repair my bicycle?|What should I cook tonight?|Tell me a joke.|"
    "What happened in the news today?|Write a program in Rust.|How tall is my brother?|"
    "Who wrote that song?|Can you draw a picture?|What is the stock price today?|"
    "How do airplanes fly?|Who was the first king?|Summarise my book.|Fix my code.|"
    "Which film should I watch?|How do I learn the piano?|What is love?"
).split("|")
UNKNOWN_ANSWER = "Sorry, I do not know that. I am only a tiny demo model."

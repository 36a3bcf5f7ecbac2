"""Tools for the demo model's training: schemas, questions, arguments and results, drawn at random.

Names of tools and parameters vary from draw to draw, so the model has to read the schema.
"""

import json
from dataclasses import dataclass

from phrasings import MORE

CITIES = (
    "Paris London Berlin Madrid Rome Vienna Prague Dublin Oslo Tokyo Cairo Lima Boston Chicago "
    "Denver Seattle Toronto Sydney Mumbai Delhi Seoul Lisbon Athens Warsaw Milan Naples Munich "
    "Hamburg Geneva Zurich Lyon Nice Porto Seville Krakow Riga Tallinn Helsinki Bergen Malmo "
    "Austin Dallas Miami Phoenix Portland Nairobi Accra Lagos Tunis Rabat Quito Bogota Havana "
    "Santiago Brisbane Perth Auckland Osaka Kyoto Hanoi Manila Jakarta Dubai Doha Ankara"
).split()
PEOPLE = (
    "Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Karin Leo Maria Nina Oscar Paula Quinn "
    "Rosa Simon Tara Uma Victor Wanda Yara Zoe Adam Bella Carl Dora Erik Fiona George Helen Ivan "
    "Julia Kevin Laura Martin Nora Olga Peter Rita Sarah Tom Vera Walter Alice Bob Carol Dan Eva "
    "Frank Grace Henry Irene Jack Kate Liam Mia Noah Olivia Paul Ruth Sam Tina"
).split()
THINGS = (
    "milk bread apples rice coffee tea sugar eggs cheese butter pasta salt honey soap paper "
    "candles batteries flowers tomatoes onions lamps chairs shoes books pencils"
).split()
TOPICS = (
    "space history music cooking chess dragons gardens robots oceans birds trains castles poetry "
    "winter islands horses volcanoes painting rivers stars bees bridges mountains football"
).split()
LANGUAGES = "French Spanish German Italian Polish Greek Swedish Turkish Russian Japanese".split()
CURRENCIES = "USD EUR GBP JPY CHF SEK NOK PLN INR BRL".split()
COMPANIES = "AAPL MSFT NVDA TSLA AMZN GOOG IBM ORCL INTC AMD SAP SONY".split()
ROOMS = (
    "kitchen; bedroom; hall; garage; office; bathroom; cellar; living room; garden; attic"
).split("; ")
WEATHER = "sunny cloudy rainy windy snowy foggy stormy clear".split()
SYLLABLES = (
    "ba be bi bo da de di do fa fe ga go ka ke ki ko la le li lo ma me mi mo na ne ni no pa pe "
    "ra re ri ro sa se si so ta te ti to va ve vi vo za zo zu lu ru mu tu ku nu"
).split()


def invented(rng):
    """A made-up name such as 'Kiralo': copying it cannot be learned by heart."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 3, 3)))).capitalize()


def city(rng):
    return rng.choice(CITIES) if rng.random() < 0.8 else invented(rng)


def person(rng):
    return rng.choice(PEOPLE) if rng.random() < 0.8 else invented(rng)


def number(low, high):
    return lambda rng: rng.randint(low, high)


def one_of(values):
    return lambda rng: rng.choice(values)


def clock(rng):
    return f"{rng.randint(6, 22):02d}:{rng.choice((0, 15, 30, 45)):02d}"


def price(rng):
    return round(rng.randint(10, 9999) / 10, 1)


@dataclass(frozen=True)
class Parameter:
    names: tuple
    kind: str
    about: str
    draw: object


@dataclass(frozen=True)
class Tool:
    names: tuple
    about: tuple
    parameters: tuple
    asked: tuple  # {0}, {1}: the arguments; the last phrasing is kept for the held-out set
    result: tuple  # (field, draw) pairs of the JSON result
    answer: str  # {0}..: arguments, {field}: the result's


def p(names, kind, about, draw):
    return Parameter(tuple(names.split()), kind, about, draw)


CITY = p("city location place town", "string", "Name of the city", city)
PERSON = p("person name contact recipient", "string", "Name of the person", person)

TOOLS = (
    Tool(
        ("get_weather", "weather", "current_weather", "fetch_weather", "weather_report"),
        ("Get the current weather of a city", "Returns the weather in a city"),
        (CITY,),
        (
            "What is the weather in {0}?",
            "How is the weather in {0} today?",
            "What's the weather like in {0}?",
            "Tell me the weather in {0}.",
            "Weather in {0}?",
            "Check the weather in {0} please.",
            "Is the weather good in {0}?",
            "Can you tell me how the weather is in {0}?",
        ),
        (("temperature", number(-9, 39)), ("condition", one_of(WEATHER))),
        "It is {condition} in {0} with {temperature} degrees.",
    ),
    Tool(
        ("get_forecast", "weather_forecast", "forecast", "fetch_forecast"),
        ("Get the weather forecast for some days", "Forecast of the weather for the next days"),
        (CITY, p("days count num_days", "integer", "Number of days", number(2, 14))),
        (
            "Give me the forecast for {0} for {1} days.",
            "What is the {1} day forecast for {0}?",
            "Show the forecast of the next {1} days in {0}.",
            "I want the weather forecast for {0}, {1} days.",
            "How will the weather in {0} be in the next {1} days?",
        ),
        (("outlook", one_of(WEATHER)), ("high", number(0, 39))),
        "The next {1} days in {0} will be {outlook} with up to {high} degrees.",
    ),
    Tool(
        ("get_time", "current_time", "local_time", "time_in_city"),
        ("Get the local time of a city", "Returns the current time in a city"),
        (CITY,),
        (
            "What time is it in {0}?",
            "What is the time in {0}?",
            "Tell me the current time in {0}.",
            "Time in {0}?",
            "Which time is it now in {0}?",
            "Can you check the time in {0}?",
        ),
        (("time", clock),),
        "It is {time} in {0}.",
    ),
    Tool(
        ("get_population", "city_population", "population", "count_people"),
        ("Get the number of people in a city", "Population of a city"),
        (CITY,),
        (
            "How many people live in {0}?",
            "What is the population of {0}?",
            "Tell me the population of {0}.",
            "Look up the population of {0}.",
            "How big is the population of {0}?",
        ),
        (("population", number(10000, 999999)),),
        "{0} has a population of {population}.",
    ),
    Tool(
        ("send_message", "send_text", "message", "write_message", "text_person"),
        ("Send a text message to a person", "Sends a message to a contact"),
        (
            PERSON,
            p(
                "text message body content",
                "string",
                "Text of the message",
                one_of(
                    (
                        "I am late",
                        "see you soon",
                        "call me back",
                        "happy birthday",
                        "dinner is ready",
                        "the train is late",
                        "good luck",
                        "meet me at noon",
                        "thank you",
                        "come home",
                        "the meeting is over",
                        "bring some water",
                    )
                ),
            ),
        ),
        (
            "Send a message to {0}: {1}",
            "Send {0} the message: {1}",
            "Text {0}: {1}",
            "Write to {0}: {1}",
            "Please tell {0} by message: {1}",
            "Please send this message to {0}: {1}",
        ),
        (("status", one_of(("sent", "delivered"))),),
        "The message to {0} was {status}.",
    ),
    Tool(
        ("call_person", "phone_call", "make_call", "dial", "start_call"),
        ("Call a person on the phone", "Starts a phone call"),
        (PERSON,),
        (
            "Call {0}.",
            "Please call {0} on the phone.",
            "Phone {0} now.",
            "Make a call to {0}.",
            "I want to call {0}.",
            "Start a phone call with {0}.",
        ),
        (("status", one_of(("connected", "busy", "no answer"))),),
        "The call to {0}: {status}.",
    ),
    Tool(
        ("set_timer", "start_timer", "timer", "countdown"),
        ("Set a timer for some minutes", "Starts a timer"),
        (p("minutes duration length", "integer", "Minutes until it rings", number(1, 90)),),
        (
            "Set a timer for {0} minutes.",
            "Start a {0} minute timer.",
            "Timer for {0} minutes please.",
            "I need a timer of {0} minutes.",
            "Please start a timer for {0} minutes.",
        ),
        (("status", one_of(("started", "running"))),),
        "The timer for {0} minutes is {status}.",
    ),
    Tool(
        ("set_alarm", "create_alarm", "alarm", "wake_up"),
        ("Set an alarm at a time of day", "Creates an alarm"),
        (p("time at when", "string", "Time of day", clock),),
        (
            "Set an alarm for {0}.",
            "Wake me up at {0}.",
            "I need an alarm at {0}.",
            "Please set the alarm to {0}.",
            "Create an alarm for {0}.",
        ),
        (("status", one_of(("set", "active"))),),
        "The alarm for {0} is {status}.",
    ),
    Tool(
        ("set_light", "switch_light", "light", "control_light"),
        ("Turn the light in a room on or off", "Switches the light of a room"),
        (
            p("room area where", "string", "Name of the room", one_of(ROOMS)),
            p("on enabled state", "boolean", "True to turn on", one_of((True, False))),
        ),
        (
            "Turn the light in the {0} {1}.",
            "Switch {1} the light in the {0}.",
            "Please turn {1} the {0} light.",
            "Light {1} in the {0}.",
            "Switch the {0} light {1}.",
        ),
        (("status", one_of(("done", "ok"))),),
        "The light in the {0} is now {1}.",
    ),
    Tool(
        ("set_temperature", "heat_room", "thermostat", "set_heating"),
        ("Set the temperature of a room", "Sets the heating of a room"),
        (
            p("room area where", "string", "Name of the room", one_of(ROOMS)),
            p("degrees temperature value", "integer", "Degrees Celsius", number(15, 28)),
        ),
        (
            "Set the {0} to {1} degrees.",
            "Heat the {0} to {1} degrees.",
            "Make it {1} degrees in the {0}.",
            "I want {1} degrees in the {0}.",
            "Please set the temperature in the {0} to {1}.",
        ),
        (("status", one_of(("done", "heating"))),),
        "The {0} is set to {1} degrees: {status}.",
    ),
    Tool(
        ("play_music", "play_song", "music", "start_music"),
        ("Play music about a topic", "Plays songs of a theme"),
        (p("topic theme query", "string", "What the music is about", one_of(TOPICS)),),
        (
            "Play music about {0}.",
            "Play a song about {0}.",
            "I want to hear music about {0}.",
            "Start some music about {0}.",
            "Put on a song about {0}.",
        ),
        (("song", invented), ("minutes", number(2, 9))),
        "Now playing {song}, {minutes} minutes long.",
    ),
    Tool(
        ("search_books", "find_book", "book_search", "library_search"),
        ("Search books about a topic", "Finds books in the library"),
        (p("topic subject query", "string", "Subject of the book", one_of(TOPICS)),),
        (
            "Find a book about {0}.",
            "Search for books about {0}.",
            "Is there a book about {0}?",
            "I want to read a book about {0}.",
            "Look for a book on {0}.",
        ),
        (("title", invented), ("author", person)),
        "I found {title} by {author}.",
    ),
    Tool(
        ("search_web", "web_search", "search", "look_up"),
        ("Search the web", "Finds pages on the internet"),
        (p("query q terms", "string", "Words to search for", one_of(TOPICS)),),
        (
            "Search the web for {0}.",
            "Search online for {0}.",
            "Look up {0} on the internet.",
            "Find web pages about {0}.",
            "Do a web search for {0}.",
        ),
        (("hits", number(2, 999)), ("best", invented)),
        "There are {hits} pages; the best one is {best}.",
    ),
    Tool(
        ("translate", "translate_text", "translation", "translate_word"),
        ("Translate a word to a language", "Translates text"),
        (
            p("text word input", "string", "Text to translate", one_of(THINGS)),
            p("language target to", "string", "Target language", one_of(LANGUAGES)),
        ),
        (
            "Translate {0} to {1}.",
            "Translate the word {0} into {1}.",
            "Use the translator: {0} to {1}.",
            "I need {0} translated to {1}.",
            "Please translate {0} into {1}.",
        ),
        (("translation", invented),),
        "{0} in {1} is {translation}.",
    ),
    Tool(
        ("convert_money", "currency_convert", "exchange", "convert_currency"),
        ("Convert an amount of money between currencies", "Converts money"),
        (
            p("amount value sum", "integer", "Amount of money", number(2, 999)),
            p("source from_currency base", "string", "Currency to sell", one_of(CURRENCIES)),
            p("target to_currency quote", "string", "Currency to buy", one_of(CURRENCIES)),
        ),
        (
            "Convert {0} {1} to {2}.",
            "How much is {0} {1} in {2}?",
            "Change {0} {1} into {2}.",
            "What are {0} {1} in {2}?",
            "Exchange {0} {1} for {2}.",
        ),
        (("result", price),),
        "{0} {1} are {result} {2}.",
    ),
    Tool(
        ("get_stock", "stock_price", "share_price", "quote"),
        ("Get the price of a stock", "Returns the share price of a company"),
        (p("symbol ticker company", "string", "Ticker symbol", one_of(COMPANIES)),),
        (
            "What is the stock price of {0}?",
            "How much is {0} stock?",
            "Give me the share price of {0}.",
            "Price of {0} shares?",
            "Look up the stock {0}.",
        ),
        (("price", price),),
        "The price of {0} is {price}.",
    ),
    Tool(
        ("buy_item", "order_item", "purchase", "add_to_cart", "shop"),
        ("Order an item in the shop", "Buys things"),
        (
            p("item product article", "string", "What to buy", one_of(THINGS)),
            p("quantity amount count", "integer", "How many", number(1, 30)),
        ),
        (
            "Order {1} {0}.",
            "Buy {1} {0} please.",
            "I want to buy {1} {0}.",
            "Put {1} {0} into the cart.",
            "Please order {1} {0} for me.",
        ),
        (("total", price),),
        "I ordered {1} {0} for {total}.",
    ),
    Tool(
        ("book_table", "reserve_table", "restaurant_booking", "reservation"),
        ("Book a table in a restaurant", "Reserves a table"),
        (
            p("guests people seats", "integer", "Number of guests", number(2, 12)),
            p("time at when", "string", "Time of day", clock),
        ),
        (
            "Book a table for {0} at {1}.",
            "Reserve a table for {0} people at {1}.",
            "I need a table for {0} at {1}.",
            "Get us a table at {1} for {0} guests.",
            "Please book a table at {1} for {0} people.",
        ),
        (("restaurant", invented), ("code", number(100, 999))),
        "The table at {restaurant} for {0} at {1} is booked; the code is {code}.",
    ),
    Tool(
        ("find_train", "train_search", "train_connection", "search_train"),
        ("Find a train between two cities", "Searches train connections"),
        (
            p("origin start departure", "string", "City of departure", city),
            p("destination goal arrival", "string", "City of arrival", city),
        ),
        (
            "Find a train from {0} to {1}.",
            "When is the next train from {0} to {1}?",
            "I want to go by train from {0} to {1}.",
            "Train from {0} to {1}?",
            "Search a train connection from {0} to {1}.",
        ),
        (("departs", clock), ("platform", number(1, 30))),
        "The train from {0} to {1} leaves at {departs} from platform {platform}.",
    ),
    Tool(
        ("get_distance", "distance", "measure_distance", "route_length"),
        ("Get the distance between two cities", "Distance in kilometres"),
        (
            p("start first a", "string", "First city", city),
            p("end second b", "string", "Second city", city),
        ),
        (
            "How far is it from {0} to {1}?",
            "What is the distance between {0} and {1}?",
            "Distance from {0} to {1}?",
            "Tell me how far {0} is from {1}.",
            "How many kilometres is it from {0} to {1}?",
        ),
        (("kilometres", number(20, 9000)),),
        "It is {kilometres} kilometres from {0} to {1}.",
    ),
    Tool(
        ("get_email", "email_address", "find_email", "lookup_email"),
        ("Look up the email address of a person", "Returns an email address"),
        (PERSON,),
        (
            "What is the email address of {0}?",
            "Find the email of {0}.",
            "Give me {0}'s email address.",
            "I need the email address of {0}.",
            "Which email address does {0} have?",
        ),
        (("email", lambda rng: f"{invented(rng).lower()}@{rng.choice(TOPICS)}.org"),),
        "The email address of {0} is {email}.",
    ),
    Tool(
        ("get_birthday", "birthday", "find_birthday", "birthday_of"),
        ("Look up the birthday of a person", "Returns a birthday"),
        (PERSON,),
        (
            "When is the birthday of {0}?",
            "When is {0}'s birthday?",
            "Tell me the birthday of {0}.",
            "Look up when {0} has birthday.",
            "On which day is {0}'s birthday?",
        ),
        (
            ("day", number(1, 28)),
            ("month", one_of("January March April May June July August October".split())),
        ),
        "The birthday of {0} is on {day} {month}.",
    ),
    Tool(
        ("roll_dice", "dice", "throw_dice", "roll"),
        ("Roll a number of dice", "Throws dice"),
        (p("count dice number", "integer", "How many dice", number(1, 9)),),
        (
            "Roll {0} dice.",
            "Throw {0} dice.",
            "Please roll {0} dice for me.",
            "Let {0} dice roll.",
            "I want to roll {0} dice.",
        ),
        (("total", number(1, 54)),),
        "The {0} dice show {total} in total.",
    ),
    Tool(
        ("multiply", "product", "times", "calc_product"),
        ("Multiply two numbers", "Returns the product of two numbers"),
        (
            p("a x first", "integer", "First number", number(2, 99)),
            p("b y second", "integer", "Second number", number(2, 99)),
        ),
        (
            "What is {0} times {1}?",
            "Multiply {0} by {1}.",
            "How much is {0} times {1}?",
            "Calculate {0} * {1}.",
            "Compute the product of {0} and {1}.",
        ),
        (("result", number(4, 9801)),),
        "{0} times {1} is {result}.",
    ),
    Tool(
        ("add_note", "save_note", "note", "write_note"),
        ("Save a note", "Writes a note"),
        (
            p(
                "text note content",
                "string",
                "Text of the note",
                one_of(
                    (
                        "buy milk",
                        "water the plants",
                        "pay the rent",
                        "call the doctor",
                        "feed the cat",
                        "clean the kitchen",
                        "book the hotel",
                        "wash the car",
                        "read the letter",
                    )
                ),
            ),
        ),
        (
            "Make a note: {0}",
            "Note: {0}",
            "Write down: {0}",
            "Save a note that says: {0}",
            "Please note this: {0}",
        ),
        (("id", number(1, 999)),),
        "I saved the note with number {id}.",
    ),
    Tool(
        ("get_status", "server_status", "check_server", "ping_server"),
        ("Check the status of a server", "Returns whether a server is up"),
        (p("server host machine", "string", "Name of the server", invented),),
        (
            "Is the server {0} up?",
            "Check the server {0}.",
            "What is the status of the server {0}?",
            "How is the server {0} doing?",
            "Look at the server {0}.",
        ),
        (("status", one_of(("up", "down", "slow"))), ("load", number(1, 99))),
        "The server {0} is {status} with a load of {load}.",
    ),
)


@dataclass
class Offer:
    """A tool as drawn for one conversation: with chosen names."""

    tool: Tool
    name: str
    names: list
    about: str
    spare: tuple | None  # an optional parameter that no question asks for

    def schema(self):
        properties = {
            name: {"type": par.kind, "description": par.about}
            for name, par in zip(self.names, self.tool.parameters)
        }
        if self.spare:
            properties[self.spare[0]] = self.spare[1]
        parameters = {"type": "object", "properties": properties, "required": list(self.names)}
        function = {"name": self.name, "description": self.about, "parameters": parameters}
        return {"type": "function", "function": function}


VERBS = (
    "open close start stop check update delete create move copy lock count print share clean "
    "find load save show hide paint build reset test watch mark"
).split()
OBJECTS = (
    "door file account report project ticket window table folder invoice garden robot camera "
    "package channel list order parcel event page task plan record album sensor machine"
).split()
SPECIAL = (
    p("name title label", "string", "Name to use", invented),
    p("owner user member", "string", "Who it belongs to", person),
    p("place location site", "string", "Where it is", city),
    p("number id index", "integer", "Its number", number(1, 9999)),
    p("level size weight", "integer", "How much", number(1, 100)),
    p("kind type category", "string", "Which kind", one_of(TOPICS)),
    p("start begin from", "string", "When it starts", clock),
    p("ratio factor scale", "number", "A factor", price),
)
OPTIONAL = (
    ("unit", {"type": "string", "enum": ["celsius", "fahrenheit"]}),
    ("verbose", {"type": "boolean", "description": "Give more details"}),
    ("limit", {"type": "integer", "description": "Most results to return"}),
    ("format", {"type": "string", "description": "Output format"}),
    ("lang", {"type": "string", "description": "Language of the answer"}),
)


def made_up(rng):
    """A tool that no table lists, such as `reset_camera`, with parameters named in the question."""
    verb, thing = rng.choice(VERBS), rng.choice(OBJECTS)
    parameters = rng.sample(SPECIAL, rng.choice((1, 2, 2, 3)))
    chosen = [Parameter((rng.choice(q.names),), q.kind, q.about, q.draw) for q in parameters]
    said = [f"{q.names[0]} {{{i}}}" for i, q in enumerate(chosen)]
    with_ = said[0] if len(said) == 1 else ", ".join(said[:-1]) + " and " + said[-1]
    asked = (
        f"{verb.capitalize()} the {thing} with {with_}.",
        f"Please {verb} the {thing}: {with_}.",
        f"I want to {verb} the {thing} with {with_}.",
        f"Can you {verb} the {thing} with {with_}?",
        f"Please {verb} the {thing} with {with_}.",
    )
    names = (f"{verb}_{thing}", f"{thing}_{verb}", f"do_{verb}_{thing}")
    about = (f"{verb.capitalize()} a {thing}", f"Use this to {verb} the {thing}")
    result = (("status", one_of(("done", "ok", "failed", "queued"))), ("code", number(1, 9999)))
    answer = f"The {thing}: {{status}}, code {{code}}."
    return Tool(names, about, tuple(chosen), asked, result, answer)


def offer(rng, tool):
    names = []
    for par in tool.parameters:
        names.append(rng.choice([n for n in par.names if n not in names]))
    spare = rng.choice(OPTIONAL) if rng.random() < 0.25 else None
    return Offer(tool, rng.choice(tool.names), names, rng.choice(tool.about), spare)


def offers(rng, count):
    """`count` different tools under different names."""
    out = []
    for tool in rng.sample(TOOLS, count):
        drawn = offer(rng, made_up(rng) if rng.random() < 0.3 else tool)
        if all(drawn.name != o.name for o in out):
            out.append(drawn)
    return out


def spoken(value):
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else str(value)


def polite(rng, question):
    """An order ("Set a timer ...") as a request; anything else after a few words."""
    first, _, rest = question.partition(" ")
    if first in IMPERATIVE and question.endswith("."):
        order = f"{first.lower()} {rest}"
        return rng.choice((
            f"Please {order}", f"Can you {order[:-1]}?", f"I want you to {order}",
            f"Could you {order[:-1]} for me?", f"You should {order}", f"Now {order}",
        ))  # fmt: skip
    if question.endswith("?"):
        lead = ("I want to know: ", "Can you tell me: ", "My question is: ", "Please find out: ")
        return rng.choice(lead) + question
    return question


IMPERATIVE = frozenset(
    "Tell Check Give Show Send Text Call Phone Make Start Set Create Turn Switch Heat Play Find "
    "Search Look Do Translate Convert Change Order Buy Put Book Reserve Get Roll Throw Multiply "
    "Calculate Write Save Ring Dial Count Let Reserve Measure Ping Add Keep Take Purchase".split()
)


@dataclass
class Use:
    """One use of an offered tool."""

    question: str
    arguments: dict
    result: str
    answer: str
    values: list  # parts of the answer that come from the result


def use(rng, drawn, held_out=False):
    tool = drawn.tool
    values = [par.draw(rng) for par in tool.parameters]
    while len(values) > 1 and values[0] == values[-1] and isinstance(values[0], str):
        values[-1] = tool.parameters[-1].draw(rng)
    words = [spoken(v) for v in values]
    asked = tool.asked[-1:] if held_out else tool.asked[:-1] + MORE.get(tool.names[0], ())
    question = rng.choice(asked)
    if not held_out and tool.names[0] in MORE and rng.random() < 0.3:
        question = polite(rng, question)
    question = question.format(*words)
    question = question[0].upper() + question[1:]
    fields = {name: draw(rng) for name, draw in tool.result}
    if rng.random() < 0.6:
        result = json.dumps(fields)
    else:
        result = ", ".join(f"{k}: {v}" for k, v in fields.items())
    answer = tool.answer.format(*words, **fields)
    shown = [str(v) for k, v in fields.items() if "{" + k + "}" in tool.answer]
    answer = answer[0].upper() + answer[1:]
    return Use(question, dict(zip(drawn.names, values)), result, answer, shown)

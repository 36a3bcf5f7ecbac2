"""Further ways to ask for the tools of toolbox.py, by the tool's first name."""

MORE = {
    "get_weather": (
        "Do I need an umbrella in {0}?", "Is it raining in {0}?", "How warm is it in {0}?",
        "Is it cold in {0} right now?", "How is it outside in {0}?", "Give me the weather for {0}.",
        "I want to know the weather in {0}.", "What temperature does {0} have now?",
        "Is the sun shining in {0}?", "I travel to {0}. How is the weather there?",
    ),
    "get_forecast": (
        "What will the weather be in {0} for the next {1} days?",
        "Weather in {0} for the next {1} days?", "Forecast for {0}, {1} days.",
        "How does the weather in {0} look over {1} days?", "Get me {1} days of forecast for {0}.",
        "What weather can {0} expect in the coming {1} days?",
        "Predict {1} days of weather in {0}.",
        "Will it rain in {0} within {1} days?", "Tell me the forecast of {0} for {1} days.",
        "I am in {0} for {1} days. How will the weather be?",
    ),
    "get_time": (
        "How late is it in {0}?", "What is the local time in {0}?",
        "What does the clock say in {0}?",
        "Give me the time in {0}.", "I need the time in {0}.", "Is it night in {0} now?",
        "What time do they have in {0}?", "Show me the clock of {0}.",
    ),
    "get_population": (
        "How many inhabitants does {0} have?", "How many people are there in {0}?",
        "Give me the population of {0}.", "Number of people in {0}?", "How large is {0} in people?",
        "I want to know how many people {0} has.", "Population of {0}?",
        "How many citizens live in {0}?",
    ),
    "send_message": (
        "Message {0}: {1}", "Let {0} know: {1}", "Send a text to {0} that says: {1}",
        "Tell {0}: {1}", "Write {0} this message: {1}", "I want to send {0} a message: {1}",
        "Can you text {0}: {1}", "Send to {0}: {1}", "A message for {0}: {1}",
    ),
    "call_person": (
        "Ring {0}.", "Dial {0}.", "Give {0} a call.", "I must talk to {0} on the phone.",
        "Get {0} on the phone.", "Can you call {0}?", "I need to phone {0}.",
        "Let me speak with {0}.",
        "Connect me with {0}.",
    ),
    "set_timer": (
        "Count down {0} minutes.", "Remind me in {0} minutes.", "Ring in {0} minutes.",
        "Give me {0} minutes on the clock.", "My tea needs {0} minutes, start a timer.",
        "Timer: {0} minutes.", "Let a timer run for {0} minutes.", "Can you time {0} minutes?",
        "I want a timer with {0} minutes.",
    ),
    "set_alarm": (
        "Alarm at {0}.", "I have to get up at {0}.", "Let the alarm ring at {0}.",
        "I want to be woken at {0}.", "Make an alarm for {0}.", "Can you wake me at {0}?",
        "Set my alarm clock to {0}.", "Ring the alarm at {0}.", "I must wake up at {0}.",
    ),
    "set_light": (
        "Turn {1} the light in the {0}.", "Put the light in the {0} {1}.", "{0} light {1}, please.",
        "The light in the {0} should be {1}.", "I want the light in the {0} {1}.",
        "Make the {0} light go {1}.", "Can you turn the {0} light {1}?", "Lights {1} in the {0}!",
    ),
    "set_temperature": (
        "The {0} should have {1} degrees.", "Put the heating in the {0} to {1} degrees.",
        "Temperature in the {0}: {1} degrees.", "Warm the {0} up to {1} degrees.",
        "Change the temperature of the {0} to {1} degrees.", "{1} degrees in the {0}, please.",
        "Can you set the heating of the {0} to {1}?", "Turn the {0} heating to {1} degrees.",
    ),
    "play_music": (
        "Let me hear songs about {0}.", "I feel like music about {0}.", "Music about {0}, please.",
        "Play something about {0}.", "Can you play a song on {0}?", "Play {0} songs.",
        "I would like to listen to music about {0}.", "Some {0} music, please.",
    ),
    "search_books": (
        "Which books are about {0}?", "I need a book on {0}.", "Do you have books about {0}?",
        "Show me books about {0}.", "Get me something to read about {0}.", "Books about {0}?",
        "What can I read about {0}?", "Search the library for {0}.", "Recommend a book about {0}.",
    ),
    "search_web": (
        "What does the web say about {0}?", "Google {0}.", "Search for {0} on the web.",
        "Find information about {0} online.", "I need web pages on {0}.", "Look for {0} online.",
        "Browse the internet for {0}.", "Web search: {0}", "Check the internet for {0}.",
    ),
    "translate": (
        "What is {0} in {1}?", "How do you say {0} in {1}?", "Give me the {1} word for {0}.",
        "Say {0} in {1}.", "I want to know {0} in {1}.", "{0} in {1}, please.",
        "Put {0} into {1}.", "Can you translate {0} to {1}?", "The word {0} in {1}?",
    ),
    "convert_money": (
        "{0} {1} to {2}", "I have {0} {1}. How many {2} is that?", "How many {2} are {0} {1}?",
        "Turn {0} {1} into {2}.", "What is {0} {1} worth in {2}?", "Give me {0} {1} in {2}.",
        "I want to change {0} {1} to {2}.", "Calculate {0} {1} in {2}.",
    ),
    "get_stock": (
        "What does {0} cost on the stock market?", "How is the {0} stock doing?", "{0} price?",
        "What is {0} trading at?", "Check the {0} share.", "Show me the stock price of {0}.",
        "How much does a share of {0} cost?", "What are {0} shares worth?", "Stock {0}, please.",
    ),
    "buy_item": (
        "I need {1} {0}.", "Get me {1} {0}.", "We need {1} {0}, order them.", "Purchase {1} {0}.",
        "Can you buy {1} {0}?", "Shop for {1} {0}.", "Add {1} {0} to my cart.",
        "I would like {1} {0}.", "{1} {0}, please order.",
    ),
    "book_table": (
        "A table for {0} at {1}, please.", "We are {0} and want to eat at {1}.",
        "Table for {0} guests, {1}.", "Reserve for {0} at {1}.", "Dinner for {0} people at {1}.",
        "Can you reserve a table for {0} at {1}?", "We come with {0} people at {1}, book a table.",
        "I want to book a table for {0} people at {1}.",
    ),
    "find_train": (
        "How do I get from {0} to {1} by train?", "I need a train from {0} to {1}.",
        "Which train goes from {0} to {1}?", "When does the train from {0} to {1} leave?",
        "I travel from {0} to {1}. Find a train.", "Next train {0} to {1}?",
        "Look for trains from {0} to {1}.", "Show me a train that goes from {0} to {1}.",
    ),
    "get_distance": (
        "How far is {1} from {0}?", "What is the distance from {0} to {1}?",
        "How long is the way from {0} to {1}?", "Give me the distance between {0} and {1}.",
        "How many kilometres are between {0} and {1}?", "Is it far from {0} to {1}?",
        "Measure the distance from {0} to {1}.", "Kilometres from {0} to {1}?",
    ),
    "get_email": (
        "How can I reach {0} by email?", "What is {0}'s email?", "Email address of {0}?",
        "Look up the email address of {0}.", "Where can I send an email to {0}?",
        "I want to write an email to {0}, what is the address?", "Show me {0}'s email.",
        "Do you have the email address of {0}?",
    ),
    "get_birthday": (
        "What day was {0} born?", "When does {0} have birthday?", "What is {0}'s birthday?",
        "Birthday of {0}?", "When was {0} born?", "What day is the birthday of {0}?",
        "I forgot the birthday of {0}.", "When do we celebrate {0}'s birthday?",
        "Find the birthday of {0}.", "Give me {0}'s birthday.",
    ),
    "roll_dice": (
        "I need a roll with {0} dice.", "{0} dice, please.", "Roll the dice, {0} of them.",
        "Can you throw {0} dice?", "Take {0} dice and roll.", "Give me a roll of {0} dice.",
        "Throw the dice {0} times.", "Play with {0} dice.",
    ),
    "multiply": (
        "{0} * {1}", "{0} times {1}", "What is {0} multiplied by {1}?", "{0} x {1} = ?",
        "Take {0} times {1}.", "What do I get for {0} times {1}?", "Calculate {0} times {1}.",
        "The product of {0} and {1}?", "How much is {0} * {1}?",
    ),
    "add_note": (
        "Remember to {0}: make a note", "New note: {0}", "Put this on my list: {0}",
        "I must not forget: {0}", "Add a note: {0}", "Keep a note: {0}", "Can you note: {0}",
        "Write a note with the text: {0}", "Take a note: {0}",
    ),
    "get_status": (
        "Does the server {0} work?", "Is {0} running, the server?", "Server {0}: is it up?",
        "Ping the server {0}.", "Is the server {0} down?", "Status of the server {0}?",
        "Can you check whether the server {0} works?", "Tell me how the server {0} is.",
    ),
}  # fmt: skip

"""Made-up customer messages with what a reader would take from them.

The texts, names and products were written for this project; the same seed gives the same messages. Held-out messages
use names, cities and products that training messages never use.
"""
import json
import random

FIRST = """Maria Tomas Aisha Henrik Lucia Pavel Ingrid Kofi Yuki Omar Clara Bruno Nadia Felix Amina Jonas Petra Diego Leila Anton
Sofia Mikkel Rosa Karim Elena Viktor Hana Luis Greta Samir Julia Marek Olga Simon Teresa Nils Farah Hugo Marta Ravi""".split()
FIRST_HELD = "Beatriz Casper Dalia Emil Frida Goran Helmi Ivo Jana Kwame".split()
LAST = """Lopez Novak Okafor Larsen Moretti Petrov Berg Mensah Tanaka Haddad Weber Costa Ivanova Keller Diallo Lund Fischer Reyes Karimi
Sokolov Rossi Jensen Silva Mansour Popescu Horvat Kimura Garcia Lindgren Shah Martin Kowalski Marin Brandt Alvarez Holm Aziz Laurent
Santos Patel""".split()
LAST_HELD = "Vidal Nyström Bakir Dvorak Osei Ferrari Wagner Amari Salonen Ortiz".split()
CITY = """Lisbon Prague Lagos Oslo Milan Sofia Bergen Accra Osaka Amman Vienna Porto Riga Zurich Dakar Malmo Hamburg Lima Tabriz Kazan
Turin Aarhus Recife Beirut Cluj Zagreb Kyoto Seville Uppsala Mumbai Lyon Krakow""".split()
CITY_HELD = "Ghent Tallinn Valencia Izmir Kumasi Brno Graz Turku".split()
PRODUCT = """kettle|desk lamp|rucksack|bicycle pump|coffee grinder|toaster|wool blanket|garden hose|keyboard|headphones|wall clock|frying pan|
raincoat|bookshelf|tent|printer|office chair|blender|phone case|suitcase|mirror|umbrella|hair dryer|night light|water bottle|radio|
vacuum cleaner|chess set|yoga mat|camping stove|washing machine|sewing kit|pocket knife|letter opener|picture book|photo album|rice bowl|
pressure cooker|pencil sharpener|bath mat|floor lamp|telescope|magnifying glass|typewriter|sleeping bag|drying rack|ironing board|
cutting board|measuring tape|paint brush|glue gun|electric drill|hand mixer|waffle iron|salad spinner|bread bin|egg timer|
fire extinguisher|smoke alarm|door bell|window blind|curtain rail|shoe rack|coat hanger|piggy bank|jigsaw puzzle|board game|
microphone|binoculars|projector|scanner|router|loudspeaker|turntable|guitar stand|violin case|drum pad|music box|torch holder|
bird feeder|flower pot|watering can|lawn mower|hedge trimmer|wheelbarrow|garden gnome|swing seat|paddling pool|beach towel""".replace("\n", "").split("|")
PRODUCT_HELD = "sewing machine|torch|picture frame|rice cooker|doormat|microscope".split("|")

# category -> sentences; {p} is the product, {o} the order number
PROBLEM = {
    "defect": ["The {p} I received does not switch on.", "My new {p} broke after two days.", "The {p} from order {o} is cracked.",
               "There is a loud noise coming from the {p}.", "One part of the {p} was missing from the box."],
    "delivery": ["My {p} has still not arrived.", "Order {o} was supposed to be here last week.", "The tracking page for the {p} has not changed for days.",
                 "The courier left the {p} at the wrong address.", "Where is my {p}?"],
    "refund": ["I sent the {p} back and I am waiting for my money.", "I would like my money back for the {p}.", "Please refund order {o}.",
               "The refund for the {p} is not on my card yet.", "I want to return the {p} and get a refund."],
    "billing": ["I was charged twice for the {p}.", "The invoice for order {o} shows the wrong amount.", "My card was billed although I cancelled the {p}.",
                "There is a fee on the bill for the {p} that I do not understand.", "The discount for the {p} is missing on my invoice."],
    "question": ["Does the {p} come with a guarantee?", "Can you tell me if the {p} is available in green?", "How do I clean the {p}?",
                 "Which batteries does the {p} need?", "Is there a manual for the {p}?"],
}
URGENT = ["I need this solved today.", "This is urgent, please answer at once.", "I leave tomorrow, so please hurry.", "Please call me right now.",
          "It has to be settled before tonight."]
CALM = ["Take your time.", "There is no hurry.", "Thank you for your help.", "Have a nice day.", "I look forward to your answer.", ""]
OPEN = ["Hello, this is {n} from {c}.", "Hi, my name is {n} and I live in {c}.", "Good morning, {n} here, writing from {c}.",
        "Dear team, I am {n} from {c}."]
CLOSE = ["My order number is {o}.", "The order was {o}.", "(order {o})", "Order number: {o}."]


def message(rng, held_out):
    """(text, facts): facts has name, city, order, product, category, urgency."""
    pick = rng.choice
    first, last = (pick(FIRST_HELD), pick(LAST_HELD)) if held_out else (pick(FIRST), pick(LAST))
    f = {"name": f"{first} {last}", "city": pick(CITY_HELD if held_out else CITY), "order": str(rng.randint(1000, 99999)),
         "product": pick(PRODUCT_HELD if held_out else PRODUCT), "category": pick(sorted(PROBLEM))}
    f["urgency"] = pick(["high", "normal"])
    fill = {"n": f["name"], "c": f["city"], "o": f["order"], "p": f["product"]}
    body = pick([s for s in PROBLEM[f["category"]] if "{p}" in s]).format(**fill)
    parts = [pick(OPEN).format(**fill), body, pick(CLOSE).format(**fill), pick(URGENT if f["urgency"] == "high" else CALM)]
    return " ".join(p for p in parts if p), f


def extract(f):
    return json.dumps({k: f[k] for k in ("name", "city", "order", "product")}, ensure_ascii=False)


def triage(f):
    desk = {"defect": "workshop", "delivery": "shipping", "refund": "accounts", "billing": "accounts", "question": "advice"}[f["category"]]
    return f"category: {f['category']} | urgency: {f['urgency']} | desk: {desk}"


TASKS = {"extract": extract, "triage": triage}


def dataset(task, n, seed, held_out=False):
    rng = random.Random(f"{seed}-{held_out}")
    out = []
    for _ in range(n):
        text, facts = message(rng, held_out)
        out.append((text, TASKS[task](facts)))
    return out

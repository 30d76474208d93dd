"""Classes of the class-conditional model, read off an emoji's name and group.

A class is a regular expression on the name; the first that is found wins, in the order of the table, so that a cat's
face is a cat and not a face. Names that none matches are left out of the class-conditional model's data.
"""

import re
from collections import Counter
from typing import Any

FACES, PEOPLE, ANIMALS, FOOD = "Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink"
TRADES = (
    "(artist|astronaut|construction|cook|detective|factory|farmer|firefighter|guard|health|judge|mechanic|office|pilot"
    "|police|scientist|singer|student|teacher|technologist)"
)

# (class, group, pattern)
RULES = (
    ("cat face with feelings", FACES, r"\bcat\b"),
    ("monkey", FACES, r"monkey"),
    ("crying or sad face", FACES, r"cry|sad|tear$|disappoint|pensive|downcast|pleading|worried|back-tears"),
    ("laughing face", FACES, r"^grinning|beaming|joy|rolling-on"),
    ("smiling face", FACES, r"smiling|relieved|hugging|halo|savoring|cowboy|sunglasses|star-struck|partying|melting"),
    ("kissing or winking face", FACES, r"kissing|wink|blowing-a-kiss|tongue|zany|smirking|drooling"),
    ("angry face", FACES, r"angry-face|enraged|pouting|steam|symbols-on-mouth|horns|unamused|eyebrow|rolling-eyes"),
    ("frightened or surprised face", FACES, r"fear|scream|astonish|hushed|flushed|anguish|anxious|open-mouth"
     r"|exploding"),
    ("ill or tired face", FACES, r"sick|sneez|nausea|vomit|thermometer|bandage|mask|sleep|yawn|weary|tired|dizzy-face"
     r"|knocked|crossed-out|spiral|woozy|hot-face|cold-face|exhaling|bags"),
    ("neutral or odd face", FACES, r"face(?!-savoring)"),
    ("monster, robot or skull", FACES, r"alien|ghost|goblin|ogre|robot|skull|poo"),
    ("heart", FACES, r"heart"),
    ("baby or child", PEOPLE, r"^(baby|boy|girl|child|baby-angel)$"),
    ("family", PEOPLE, r"^family"),
    ("couple", PEOPLE, r"^couple|^kiss|holding-hands|bunny-ears|wrestling|people-hugging"),
    ("wheelchair or white cane", PEOPLE, r"wheelchair|cane"),
    ("sport", PEOPLE, r"biking|bouncing|climbing|golfing|handball|polo|rowing|surfing|swimming|lifting|juggling"
     r"|cartwheel|skier|snowboarder|horse-racing|fencing"),
    ("walking, running or dancing", PEOPLE, r"walking|running|kneeling|standing|dancing|lotus|dancer|levitating"),
    ("magic being", PEOPLE, r"mage|fairy|elf|genie|vampire|zombie|mer(maid|man|person|people)|super|troll|ninja"),
    ("woman at work", PEOPLE, rf"^woman-{TRADES}"),
    ("man at work", PEOPLE, rf"^man-{TRADES}"),
    ("person at work", PEOPLE, rf"^{TRADES}"),
    ("woman", PEOPLE, r"^woman|^old-woman|princess|mrs-claus|pregnant-woman|breast|^deaf-woman"),
    ("man", PEOPLE, r"^man|^old-man|^prince$|santa|mx-claus|pregnant-man|^deaf-man"),
    ("person", PEOPLE, r"^person-(?!in-bed|taking)|^person$|^deaf-person|older-person|pregnant"),
    ("hand", PEOPLE, r"hand|fist|thumb|finger|index|horns|love-you|salute|palm|biceps|selfie|nail"),
    ("bird", ANIMALS, r"bird|chick|dove|duck|eagle|flamingo|goose|owl|parrot|peacock|penguin|rooster|swan|turkey|dodo"
     r"|phoenix"),
    ("cat or big cat", ANIMALS, r"\bcat\b|lion|tiger|leopard"),
    ("dog, fox or wolf", ANIMALS, r"dog|poodle|fox|wolf|raccoon|badger|skunk"),
    ("bear or ape", ANIMALS, r"\bbear|panda|koala|monkey|gorilla|orangutan|sloth"),
    ("horse, deer or camel", ANIMALS, r"horse|unicorn|zebra|deer|moose|camel|llama|giraffe|donkey|kangaroo|goat"
     r"|ewe|^ram$"),
    ("cow, pig or elephant", ANIMALS, r"cow|^ox$|buffalo|bison|pig|boar|elephant|mammoth|rhino|hippo"),
    ("mouse, rabbit or hedgehog", ANIMALS, r"mouse|^rat$|hamster|rabbit|hedgehog|chipmunk|beaver|otter|^bat$"),
    ("reptile or frog", ANIMALS, r"crocodile|lizard|snake|turtle|frog|dragon(?!fly)|sauropod|t-rex"),
    ("fish or whale", ANIMALS, r"fish|whale|dolphin|shark|orca|seal"),
    ("insect or spider", ANIMALS, r"\bant$|beetle|bug|bee|butterfly|cockroach|cricket|\bfly$|mosquito|spider$"
     r"|scorpion|worm"),
    ("sea animal with a shell", ANIMALS, r"crab|lobster|shrimp|squid|octopus|oyster|snail|shell|coral"),
    ("flower", ANIMALS, r"flower|rose|blossom|hibiscus|hyacinth|lotus|tulip|bouquet"),
    ("tree or leaf", ANIMALS, r"tree|leaf|herb|clover|shamrock|seedling|cactus|plant|rice"),
    ("fruit", FOOD, r"apple|banana|blueberr|cherr|coconut|grape|kiwi|lemon|lime|mango|melon|peach|pear$|strawberry"
     r"|tangerine|avocado|olive"),
    ("vegetable", FOOD, r"pepper|broccoli|carrot|cucumber|corn|eggplant|garlic|ginger|leafy|mushroom|onion|pea-pod"
     r"|peanut|potato|tomato|bean|chestnut|salad|root"),
    ("bread or pastry", FOOD, r"bread|bagel|baguette|croissant|pretzel|pancake|waffle|pie$|cookie|doughnut"),
    ("cake or sweet", FOOD, r"cake|candy|chocolate|custard|^ice|-ice\b|lollipop|dango|honey"),
    ("drink", FOOD, r"beer|bottle|tea|beverage|cocktail|cup|glass|wine|sake|milk|drink|mate$"),
    ("meal", FOOD, r"."),
)  # fmt: skip
CLASSES = tuple(name for name, _, _ in RULES)


def class_of(row: dict[str, Any]) -> int | None:
    """Place in CLASSES of an image by its row of the table of zoo/render.py, None if it is of no class."""
    for index, (_, group, pattern) in enumerate(RULES):
        if row["group"] == group and re.search(pattern, row["name"]):
            return index
    return None


def count_classes(table: list[dict[str, Any]]) -> dict[str, int]:
    """Number of images of each class."""
    counts = Counter(class_of(row) for row in table)
    return {name: counts[index] for index, name in enumerate(CLASSES)}

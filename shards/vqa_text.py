"""How VQA's official script rewrites an answer before it compares it, faults included.

Source: `processPunctuation` and `processDigitArticle` of vqaEval.py (GT-Vision-Lab/VQA; the copy in ALBEF is the same).
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

PUNCTUATION = (*';/[]"{}()=+\\_-><@`,?!',)
"""In the order of the script. Apostrophes, colons and full stops are not among them."""

NUMBER_WORDS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_SOFT_SCORES = (0.0, 0.3, 0.6, 0.9)
ARTICLES = ("a", "an", "the")

_CONTRACTIONS = """
    aint:ain't arent:aren't cant:can't couldve:could've couldnt:couldn't couldn'tve:couldn't've couldnt've:couldn't've
    didnt:didn't doesnt:doesn't dont:don't hadnt:hadn't hadnt've:hadn't've hadn'tve:hadn't've hasnt:hasn't
    havent:haven't hed:he'd hed've:he'd've he'dve:he'd've hes:he's howd:how'd howll:how'll hows:how's Id've:I'd've
    I'dve:I'd've Im:I'm Ive:I've isnt:isn't itd:it'd itd've:it'd've it'dve:it'd've itll:it'll let's:let's maam:ma'am
    mightnt:mightn't mightnt've:mightn't've mightn'tve:mightn't've mightve:might've mustnt:mustn't mustve:must've
    neednt:needn't notve:not've oclock:o'clock oughtnt:oughtn't ow's'at:'ow's'at 'ows'at:'ow's'at 'ow'sat:'ow's'at
    shant:shan't shed've:she'd've she'dve:she'd've she's:she's shouldve:should've shouldnt:shouldn't
    shouldnt've:shouldn't've shouldn'tve:shouldn't've somebody'd:somebodyd somebodyd've:somebody'd've
    somebody'dve:somebody'd've somebodyll:somebody'll somebodys:somebody's someoned:someone'd someoned've:someone'd've
    someone'dve:someone'd've someonell:someone'll someones:someone's somethingd:something'd
    somethingd've:something'd've something'dve:something'd've somethingll:something'll thats:that's thered:there'd
    thered've:there'd've there'dve:there'd've therere:there're theres:there's theyd:they'd theyd've:they'd've
    they'dve:they'd've theyll:they'll theyre:they're theyve:they've twas:'twas wasnt:wasn't wed've:we'd've
    we'dve:we'd've weve:we've werent:weren't whatll:what'll whatre:what're whats:what's whatve:what've whens:when's
    whered:where'd wheres:where's whereve:where've whod:who'd whod've:who'd've who'dve:who'd've wholl:who'll whos:who's
    whove:who've whyll:why'll whyre:why're whys:why's wont:won't wouldve:would've wouldnt:wouldn't
    wouldnt've:wouldn't've wouldn'tve:wouldn't've yall:y'all yall'll:y'all'll y'allll:y'all'll yall'd've:y'all'd've
    y'alld've:y'all'd've y'all'dve:y'all'd've youd:you'd youd've:you'd've you'dve:you'd've youll:you'll youre:you're
    youve:you've
"""

CONTRACTIONS: dict[str, str] = dict(re.findall(r"(\S+):(\S+)", _CONTRACTIONS))
"""The script's, in full: one loses its apostrophe (somebody'd), and those with capitals never apply, since words are
lowered before."""

_PERIODS = 32
"""The script passes re.UNICODE (32) where `sub` expects how many full stops it may drop."""

_period = re.compile(r"\.(?!\d)")
"""The script means to spare the full stop behind a digit too, but its look-behind is misspelt and never matches."""
_comma_in_number = re.compile(r"\d,\d")


@lru_cache(maxsize=1 << 16)
def strip_punctuation(text: str) -> str:
    """A text without punctuation, as `processPunctuation` leaves it.

    A sign becomes nothing where it stands beside a blank, and a blank elsewhere: "t-shirt" becomes "t shirt", "a - b"
    "a  b". A comma between digits, anywhere, makes every sign nothing. A full stop goes unless a digit follows.
    """
    number_has_comma = _comma_in_number.search(text) is not None
    bare = text
    for sign in PUNCTUATION:
        beside_blank = f"{sign} " in text or f" {sign}" in text
        bare = bare.replace(sign, "" if beside_blank or number_has_comma else " ")
    return _period.sub("", bare, count=_PERIODS)


@lru_cache(maxsize=1 << 16)
def simplify_words(text: str) -> str:
    """A text as `processDigitArticle` leaves it: lower case, zero ... ten and none as digits, no articles, apostrophes
    put back into contractions, single blanks."""
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalise_prediction(text: str) -> str:
    """What the script compares with the annotators' answers."""
    return simplify_words(strip_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def normalise_label(text: str) -> str:
    """An answer as a class of a classifier: `preprocess_answer` of compute_softscore.py
    (hengyuan-hu/bottom-up-attention-vqa), which is the official rewriting without commas."""
    return simplify_words(strip_punctuation(text)).replace(",", "")


def soft_scores(answers: Sequence[str]) -> dict[str, float]:
    """What a classifier over answers is taught: each distinct answer with a part of 1, by how many annotators gave it:
    .3, .6, .9, and 1 for four and more.

    Source: compute_softscore.py (hengyuan-hu/bottom-up-attention-vqa); LXMERT's labels have these scores. The script
    counts answers as they are written, and so drops those that only the rewriting brings into its vocabulary; here
    they are rewritten first, and spellings of one answer count together.

    Args:
        answers: one of each annotator, as written.
    """
    counts = Counter(normalise_label(answer) for answer in answers)
    return {answer: _SOFT_SCORES[count] if count < len(_SOFT_SCORES) else 1.0 for answer, count in counts.items()}

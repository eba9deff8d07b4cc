"""Irregular verbs whose past and participle differ."""

from __future__ import annotations

from random import Random

from krill.evaluation.minimal_pairs.english.everyday import PEOPLE
from krill.evaluation.minimal_pairs.english.sentences import contrast
from krill.evaluation.minimal_pairs.english.technical import EXPERTS, PROGRAMS
from krill.evaluation.minimal_pairs.english.vocabulary import parse_lines
from krill.evaluation.minimal_pairs.phenomenon import Pair

_EVERYDAY = parse_lines(
    """
    took taken | a photo of the lake, the wrong bus, a long walk
    wrote written | a letter to the mayor, a short poem, a book about birds
    broke broken | a cup, the kitchen window, a promise
    chose chosen | a blue hat, a name for the dog, the best seat
    drove driven | the bus to the station, an old truck, a car through the snow
    ate eaten | an apple, the whole cake, breakfast in the garden
    threw thrown | a stone into the river, the letter away, the ball over the fence
    drew drawn | a map of the village, a picture of a horse, a circle in the sand
    spoke spoken | with the doctor, about the accident, to the guests
    stole stolen | a bicycle, the ring, two apples
    wore worn | a green coat, a hat, a scarf
    saw seen | a fox in the forest, the new film, a ghost
    rode ridden | a horse along the beach, a bicycle to town, a camel
    sang sung | an old song, in the choir, for the children
    flew flown | a kite on the beach, a small plane
    grew grown | tomatoes in the garden, a tall tree, potatoes
    tore torn | the letter into pieces, a page out of the book, the shirt
    went gone | to the market, home early, to the dentist
    did done | the dishes, the homework, a good job
    came come | home late, to the party, back from Italy
    shook shaken | the tree, the bottle, the branch
    knew known | the answer, the truth, the way to the castle
    gave given | the dog a bone, the children some bread
    began begun | to cry, to sing, to paint the fence
    swam swum | across the lake, in the river, to the island
    froze frozen | the soup, the meat, some bread
    rang rung | the bell, at the door
    blew blown | out the candle, a whistle
    became become | a good swimmer, very famous, the best player
    """
)
_EXPERT = parse_lines(
    """
    wrote written | a parser, a test for the function, the first version, a short script
    rewrote rewritten | the function, the old module, the whole program
    took taken | a screenshot, over the project, a look at the code
    gave given | the variable a name, the user a password, the function two arguments
    broke broken | the build, the test, the interface
    chose chosen | a port, a name for the variable, the wrong option
    saw seen | the warning, the error message, the new version
    ran run | the tests, the program, the script in a loop
    undid undone | the last change, the update
    redid redone | the tests, the work
    did done | the update, the work, the same in the other module
    began begun | to test the parser, to rewrite the function, to use threads
    drew drawn | a graph of the results, a line on the screen, a table
    withdrew withdrawn | the patch, the bug report
    knew known | the password, the name of the file, the reason for the error
    became become | the leader of the project, the owner of the file
    went gone | through the log files, back to the old version
    froze frozen | the list of packages, the old branch
    spoke spoken | with the author, about the bug, to the new users
    threw thrown | the old code away, away the log files
    """
)
_PROGRAM = parse_lines(
    """
    wrote written | the data to a file, a message to the log, the results to the disk
    overwrote overwritten | the old file, the default settings, the last line
    took taken | two arguments, too much memory, a lock, an hour
    gave given | the user a warning, the process a number
    threw thrown | an exception, an error
    ran run | the tests, the command twice
    went gone | into an endless loop, to sleep
    began begun | to read the file, to use more memory, to print numbers
    overrode overridden | the default value, the settings of the user
    chose chosen | a free port, the wrong file, the first option
    drew drawn | a line on the screen, the window again
    became become | the default, very slow
    broke broken | the connection, the file
    froze frozen | the screen, the window
    """
)
_NOUNS = (tuple(n.singular for n in PEOPLE.nouns), tuple(n.singular for n in EXPERTS.nouns))
_PROGRAM_NAMES = tuple(noun.singular for noun in PROGRAMS.nouns)


def draw_irregular(random: Random, side: int) -> Pair:
    """Draws a perfect (side 0) or a past (side 1)."""
    lines, names = random.choice(
        ((_EVERYDAY, _NOUNS[0]), (_EVERYDAY, _NOUNS[0]), (_EXPERT, _NOUNS[1]), (_PROGRAM, _PROGRAM_NAMES))
    )
    forms, _, rests = random.choice(lines).partition(" | ")
    past, participle = forms.split()
    subject, rest = f"the {random.choice(names)}", random.choice(rests.split(", "))
    if side:
        return contrast(subject, past, participle, rest)
    return contrast(
        f"{subject} {random.choice(('has', 'had', 'has never', 'had already'))}", participle, past, rest
    )

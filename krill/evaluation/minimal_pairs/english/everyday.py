"""Words of everyday life."""

from __future__ import annotations

from krill.evaluation.minimal_pairs.english.vocabulary import (
    Register,
    Theme,
    index_nouns,
    parse_actions,
    parse_lines,
    parse_modifiers,
    parse_verb_phrases,
    pick_nouns,
)

EVERYDAY_NOUNS = index_nouns(
    "a teacher teachers, a farmer farmers, a neighbor neighbors, a doctor doctors, a nurse nurses, a driver "
    "drivers, a baker bakers, a gardener gardeners, a singer singers, a painter painters, a student students, a "
    "girl girls, a boy boys, a woman women, a man men, a child children, a tailor tailors, a waiter waiters, a "
    "pilot pilots, a lawyer lawyers, a carpenter carpenters, a visitor visitors, a librarian librarians, a "
    "dancer dancers, a guest guests, an actor actors, a friend friends, a stranger strangers, a dog dogs, a cat "
    "cats, a horse horses, a cow cows, a goat goats, a donkey donkeys, a rabbit rabbits, a pig pigs, a bird "
    "birds, a chicken chickens, a pony ponies, a key keys, a book books, a letter letters, a cup cups, a lamp "
    "lamps, a chair chairs, a box boxes, a picture pictures, an umbrella umbrellas, a clock clocks, a bag bags, "
    "a ring rings, a door doors, a window windows, a gate gates, a suitcase suitcases, a car cars, a shirt "
    "shirts, a plate plates, a kitchen kitchens, a room rooms, a table tables, a floor floors, a fence fences, a "
    "wall walls, a bicycle bicycles, a roof roofs, a basket baskets, a hat hats, a house houses, a boat boats, a "
    "wallet wallets, a map maps, a tree trees, a poem poems, a story stories, a museum museums, a castle "
    "castles, a village villages, a farm farms, a film films, a match matches, a game games, an apple apples, an "
    "egg eggs, a sofa sofas, a pear pears, a bus buses, a truck trucks, a tractor tractors, a coat coats, a "
    "scarf scarves, a garden gardens, a ball balls, a stone stones, a song songs, a bridge bridges, a knife "
    "knives, a guitar guitars, a shelf shelves, a bed beds, a drawer drawers, a barn barns, a field fields, a "
    "yard yards, a shop shops, a hotel hotels, a photo photos, a plan plans, a name names, a spoon spoons, a jar "
    "jars, a banana bananas, a sandwich sandwiches, a rose roses, a city cities, a parcel parcels, a ticket "
    "tickets"
)
PEOPLE_NAMES = (
    "teacher farmer neighbor doctor nurse driver baker gardener singer painter student girl boy woman man child "
    "tailor waiter pilot lawyer carpenter visitor librarian dancer"
)
PEOPLE = Theme(
    nouns=pick_nouns(EVERYDAY_NOUNS, PEOPLE_NAMES),
    adjectives=("young", "old", "tall", "new", "friendly", "quiet"),
    predicates=parse_verb_phrases(
        """
        lives live | near the river
        lives live | in a small house
        works work | in the garden on Sundays
        speaks speak | three languages
        likes like | fresh bread
        plays play | football on Saturdays
        buys buy | a newspaper every morning
        drinks drink | tea after dinner
        walks walk | to the station every day
        sings sing | in a choir
        knows know | the way to the lake
        wants want | a new bicycle
        needs need | a warm coat
        sleeps sleep | until noon on Sundays
        gets get | up early
        takes take | the bus to town
        loves love | old songs
        hates hate | cold water
        eats eat | an apple every day
        goes go | to bed late
        comes come | here every summer
        swims swim | in the lake every morning
        buys buy | bread at the market
        visits visit | the museum every year
        remembers remember | the accident
        collects collect | old coins
        watches watch | the news every evening
        writes write | long letters
        dances dance | very well
        cooks cook | dinner on Fridays
        grows grow | tomatoes in the garden
        laughs laugh | at every joke
        prefers prefer | tea to coffee
        believes believe | in ghosts
        waits wait | for the train every day
        listens listen | to the radio at night
        rides ride | a bicycle to work
        studies study | French in the evening
        """
    ),
    states=parse_lines(
        """
        tired
        happy
        late
        very kind
        hungry
        thirsty
        afraid of spiders
        busy today
        angry about the noise
        proud of the prize
        good at chess
        from Canada
        ready to leave
        sick today
        fond of animals
        sure about the answer
        worried about the weather
        too shy to sing
        """
    ),
    experiences=parse_lines(
        """
        won a prize
        seen a whale
        broken a window
        missed a train
        lived abroad
        been to Paris
        written a poem
        lost a key
        climbed a mountain
        ridden a camel
        slept in a tent
        eaten snails
        forgotten a birthday
        met the king
        """
    ),
    phrases=parse_modifiers(
        EVERYDAY_NOUNS,
        """
        with | dog suitcase umbrella guitar bicycle
        next to | car tree table gate
        behind | tree car house
        in | picture photo
        in front of | shop hotel house
        near | window tree gate
        from | village city farm
        """,
    ),
    object_clauses=parse_modifiers(
        EVERYDAY_NOUNS,
        """
        helps / help | child girl boy neighbor student guest doctor
        likes / like | child girl boy neighbor student guest waiter
        trusts / trust | child girl boy neighbor student guest lawyer
        admires / admire | child girl boy neighbor student guest actor
        visits / visit | child girl boy neighbor student friend
        """,
    ),
    subject_clauses=parse_modifiers(
        EVERYDAY_NOUNS,
        """
        feeds / feed | cat dog horse bird rabbit
        knows / know | doctor singer farmer actor lawyer
        owns / own | boat shop horse hotel farm
        looks after / look after | horse garden dog
        likes / like | cat dog story song
        repairs / repair | clock bicycle roof
        """,
    ),
    relative="who",
)
ANIMALS = Theme(
    nouns=pick_nouns(EVERYDAY_NOUNS, "dog cat horse cow goat donkey rabbit pig pony"),
    adjectives=("young", "old", "black", "white", "brown"),
    predicates=parse_verb_phrases(
        """
        sleeps sleep | in the barn
        follows follow | the farmer everywhere
        drinks drink | from the bucket
        lives live | behind the house
        hates hate | the rain
        runs run | away from strangers
        looks look | hungry
        waits wait | at the gate every evening
        comes come | home in the evening
        makes make | a lot of noise
        needs need | fresh water
        belongs belong | to the neighbors
        lies lie | in the sun all day
        plays play | in the garden
        eats eat | twice a day
        knows know | the way home
        likes like | the old farmer
        """
    ),
    states=parse_lines(
        """
        hungry
        asleep
        dirty
        wet
        thirsty
        very friendly
        afraid of thunder
        tired
        quiet today
        """
    ),
    experiences=parse_lines(
        """
        bitten a child
        run away
        broken a fence
        been ill
        attacked a stranger
        slept in the house
        caused an accident
        hurt a child
        """
    ),
    phrases=parse_modifiers(
        EVERYDAY_NOUNS,
        """
        behind | fence tree barn
        near | barn tree gate
        next to | car tree fence
        in | garden field yard picture
        in front of | house barn shop
        """,
    ),
    object_clauses=parse_modifiers(
        EVERYDAY_NOUNS,
        """
        feeds / feed | child girl boy farmer neighbor
        likes / like | child girl boy farmer neighbor visitor
        owns / own | farmer neighbor teacher doctor
        loves / love | child girl boy student
        """,
    ),
    subject_clauses=parse_modifiers(
        EVERYDAY_NOUNS,
        """
        watches / watch | child farmer girl boy
        likes / like | child farmer girl boy
        hates / hate | chicken bird
        belongs to / belong to | farmer neighbor teacher
        """,
    ),
)
THINGS = Theme(
    nouns=pick_nouns(EVERYDAY_NOUNS, "key book basket cup lamp chair box picture umbrella clock bag ring"),
    adjectives=("old", "new", "small", "blue", "other"),
    predicates=parse_verb_phrases(
        """
        belongs belong | to my sister
        looks look | heavy
        needs need | a better place
        comes come | from Italy
        reminds remind | my sister of Italy
        looks look | beautiful
        seems seem | very useful
        belongs belong | to the neighbors
        takes take | up too much space
        smells smell | of smoke
        looks look | very nice
        comes come | from an old shop
        """
    ),
    states=parse_lines(
        """
        missing
        rare
        too expensive
        for sale
        dirty
        wet
        dusty
        from France
        easy to find
        hard to see
        """
    ),
    experiences=parse_lines(
        """
        been stolen
        been sold
        been lost
        fallen to the floor
        caused trouble
        been in this room
        """
    ),
    phrases=parse_modifiers(
        EVERYDAY_NOUNS,
        """
        on | table shelf bed
        in | room picture
        under | bed table
        near | door window
        next to | bed sofa lamp
        for | guest visitor child
        """,
    ),
    object_clauses=parse_modifiers(
        EVERYDAY_NOUNS,
        """
        likes / like | child girl boy neighbor guest
        wants / want | child girl boy neighbor student
        needs / need | teacher nurse doctor student
        loves / love | child girl boy
        """,
    ),
    subject_clauses=parse_modifiers(
        EVERYDAY_NOUNS,
        """
        belongs to / belong to | teacher neighbor doctor student nurse
        stands next to / stand next to | bed sofa window
        """,
    ),
    relative="which",
)
PEOPLE_ACTIONS = parse_actions(
    EVERYDAY_NOUNS,
    PEOPLE.nouns,
    """
    open opens opened opened opening | door window gate box letter suitcase drawer
    close closes closed closed closing | door window gate box suitcase drawer
    lock locks locked locked locking | door gate suitcase car room
    * wash washes washed washed washing | car shirt cup plate window apple
    * clean cleans cleaned cleaned cleaning | kitchen room table floor window
    * paint paints painted painted painting | fence wall door gate
    * repair repairs repaired repaired repairing | bicycle car roof chair clock fence
    * carry carries carried carried carrying | bag box basket chair suitcase
    buy buys bought bought buying | hat lamp book bicycle car house
    sell sells sold sold selling | house car bicycle boat horse
    draw draws drew drawn drawing | map picture horse tree
    write writes wrote written writing | letter poem book story
    visit visits visited visited visiting | museum castle village farm
    watch watches watched watched watching | film match game bird
    hide hides hid hidden hiding | key letter ring box
    eat eats ate eaten eating | apple pear egg banana sandwich
    drive drives drove driven driving | car bus truck tractor
    wear wears wore worn wearing | hat coat scarf ring
    feed feeds fed fed feeding | horse dog cat goat
    choose chooses chose chosen choosing | hat book coat picture
    throw throws threw thrown throwing | ball stone
    * describe describes described described describing | house picture village garden
    * plant plants planted planted planting | tree rose
    * use uses used used using | lamp knife umbrella bicycle spoon
    sing sings sang sung singing | song
    pack packs packed packed packing | suitcase bag box
    deliver delivers delivered delivered delivering | letter box basket parcel
    * decorate decorates decorated decorated decorating | room table house garden
    * water waters watered watered watering | garden tree rose
    * examine examines examined examined examining | ring clock car picture
    * polish polishes polished polished polishing | table floor ring spoon
    ride rides rode ridden riding | horse bicycle pony
    * borrow borrows borrowed borrowed borrowing | book bicycle car umbrella
    * photograph photographs photographed photographed photographing | house castle bird tree
    """,
)
ACCIDENTS = parse_actions(
    EVERYDAY_NOUNS,
    PEOPLE.nouns,
    """
    find finds found found finding | key ring wallet bag letter
    lose loses lost lost losing | key ring wallet umbrella
    break breaks broke broken breaking | cup plate window chair
    * admire admires admired admired admiring | picture garden castle ring
    forget forgets forgot forgotten forgetting | key umbrella bag
    """,
    is_deed=False,
)
EVERYDAY = Register("everyday", (PEOPLE, ANIMALS, THINGS), PEOPLE_ACTIONS + ACCIDENTS)

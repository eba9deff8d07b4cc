"""Words of technical documentation."""

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

TECHNICAL_NOUNS = index_nouns(
    "a function functions, a method methods, a callback callbacks, a wrapper wrappers, a handler handlers, a "
    "macro macros, a program programs, a script scripts, a server servers, a client clients, a parser parsers, a "
    "compiler compilers, a command commands, a tool tools, an application applications, a plugin plugins, a "
    "service services, a module modules, a package packages, a library libraries, an extension extensions, a "
    "framework frameworks, a user users, a developer developers, a programmer programmers, an administrator "
    "administrators, a maintainer maintainers, a reviewer reviewers, a tester testers, a designer designers, an "
    "object objects, a class classes, a file files, a folder folders, a list lists, a string strings, a value "
    "values, an argument arguments, a parameter parameters, a variable variables, a constant constants, an "
    "option options, a test tests, a table tables, a database databases, a setting settings, a format formats, "
    "an account accounts, a password passwords, a bug bugs, an error errors, an exception exceptions, an event "
    "events, a message messages, a warning warnings, a page pages, a document documents, a manual manuals, an "
    "example examples, a patch patches, a change changes, a branch branches, a ticket tickets, a report reports, "
    "a window windows, an editor editors, a log logs, a line lines, a word words, a number numbers, an index "
    "indexes, a process processes, a thread threads, a socket sockets, a connection connections, a request "
    "requests, an expression expressions, a dictionary dictionaries, a tuple tuples, an iterator iterators, a "
    "computer computers, a machine machines, a container containers, a repository repositories, a project "
    "projects, a website websites, a debugger debuggers, an element elements, a key keys, a name names, a port "
    "ports, a result results, a mistake mistakes, an attribute attributes, a sequence sequences, a token tokens, "
    "a loop loops, a comment comments, a lock locks, a task tasks, a device devices"
)
CALLABLES = Theme(
    nouns=pick_nouns(TECHNICAL_NOUNS, "function method callback wrapper handler macro"),
    adjectives=("new", "old", "other"),
    predicates=parse_verb_phrases(
        """
        returns return | a list of names
        returns return | the length of the string
        takes take | two arguments
        accepts accept | any number of arguments
        raises raise | an exception if the key is missing
        calls call | the method of the parent class
        modifies modify | the list in place
        counts count | the lines of the file
        prints print | the result
        creates create | a new object
        ignores ignore | the first argument
        expects expect | a string
        converts convert | the value to an integer
        runs run | in a separate thread
        depends depend | on the current settings
        uses use | a lot of memory
        checks check | the type of the argument
        removes remove | the last element of the list
        writes write | to a log file
        opens open | the file in binary mode
        waits wait | until data is available
        closes close | the connection
        sorts sort | the list
        changes change | the value of the variable
        works work | with any sequence
        """
    ),
    states=parse_lines(
        """
        deprecated
        very slow
        recursive
        hard to read
        part of the public interface
        easy to test
        faster than before
        documented below
        no longer available
        safe to use with threads
        written in Python
        useful for debugging
        """
    ),
    experiences=parse_lines(
        """
        raised an exception
        returned a wrong result
        caused an error
        failed
        changed the list
        blocked the program
        lost data
        printed a warning
        """
    ),
    phrases=parse_modifiers(
        TECHNICAL_NOUNS,
        """
        in | module class package library file
        of | class object module
        for | string list user file
        with | argument parameter bug
        from | module library
        """,
    ),
    object_clauses=parse_modifiers(
        TECHNICAL_NOUNS,
        """
        calls / call | test program script client
        uses / use | program script server module class
        defines / define | class module package library
        needs / need | user program test class
        """,
    ),
    subject_clauses=parse_modifiers(
        TECHNICAL_NOUNS,
        """
        calls / call | method function handler
        reads / read | file line document
        uses / use | lock database setting
        sorts / sort | list table number
        changes / change | object setting value
        checks / check | password value argument
        """,
    ),
    relative="which",
)
PROGRAMS = Theme(
    nouns=pick_nouns(
        TECHNICAL_NOUNS,
        "program script server client parser compiler command tool application plugin service",
    ),
    adjectives=("new", "old", "other"),
    predicates=parse_verb_phrases(
        """
        runs run | in the background
        loads load | the configuration file at startup
        stops stop | after an error
        writes write | the results to a file
        waits wait | for input
        uses use | too much memory
        supports support | several formats
        needs need | a password
        prints print | a warning
        accepts accept | several options
        exits exit | with an error code
        ignores ignore | empty lines
        logs log | every request
        fails fail | on large files
        handles handle | errors gracefully
        creates create | a temporary folder
        sends send | a message to the user
        deletes delete | old log files
        loads load | the data into memory
        works work | on all platforms
        requires require | a recent version of Python
        starts start | without a warning
        opens open | the file in text mode
        """
    ),
    states=parse_lines(
        """
        slow
        busy
        available
        out of date
        unable to open the file
        active
        free of charge
        easy to install
        compatible with older versions
        ready to use
        too slow for large files
        written in Python
        """
    ),
    experiences=parse_lines(
        """
        crashed
        failed
        lost data
        caused an error
        printed a warning
        used this port
        changed the settings
        deleted a file
        ignored an error
        """
    ),
    phrases=parse_modifiers(
        TECHNICAL_NOUNS,
        """
        on | computer machine device
        in | package folder container
        for | user developer administrator
        from | package
        """,
    ),
    object_clauses=parse_modifiers(
        TECHNICAL_NOUNS,
        """
        starts / start | user test script
        maintains / maintain | developer programmer
        installs / install | administrator user package
        uses / use | developer user administrator project
        """,
    ),
    subject_clauses=parse_modifiers(
        TECHNICAL_NOUNS,
        """
        reads / read | file document message
        uses / use | database library module
        manages / manage | account task device
        supports / support | format device extension
        checks / check | password file document
        """,
    ),
    relative="which",
)
PACKAGES = Theme(
    nouns=pick_nouns(TECHNICAL_NOUNS, "module package library framework extension"),
    adjectives=("new", "old", "other"),
    predicates=parse_verb_phrases(
        """
        contains contain | several functions
        provides provide | functions for sorting lists
        depends depend | on the standard library
        supports support | Unicode
        includes include | many examples
        replaces replace | an earlier version
        needs need | a recent compiler
        uses use | a different format
        works work | on all platforms
        comes come | with good documentation
        offers offer | a simple interface
        implements implement | a fast algorithm
        requires require | Python
        defines define | three classes
        """
    ),
    states=parse_lines(
        """
        deprecated
        free of charge
        available on all platforms
        well documented
        incomplete
        easy to use
        part of the standard library
        written in Python
        ready for release
        smaller than the others
        """
    ),
    experiences=parse_lines(
        """
        caused an error
        broken the build
        contained a bug
        used threads
        used this tool
        been popular
        been tested
        """
    ),
    phrases=parse_modifiers(
        TECHNICAL_NOUNS,
        """
        in | folder repository project container
        for | parser developer server
        from | project repository
        with | bug example test
        """,
    ),
    object_clauses=parse_modifiers(
        TECHNICAL_NOUNS,
        """
        imports / import | program script test
        uses / use | project application program
        maintains / maintain | developer programmer
        needs / need | project user server
        """,
    ),
    subject_clauses=parse_modifiers(
        TECHNICAL_NOUNS,
        """
        defines / define | class function constant
        contains / contain | test example class
        replaces / replace | script tool plugin
        """,
    ),
    relative="which",
)
EXPERTS = Theme(
    nouns=pick_nouns(
        TECHNICAL_NOUNS, "user developer programmer administrator maintainer reviewer tester designer"
    ),
    adjectives=("new", "other", "experienced"),
    predicates=parse_verb_phrases(
        """
        opens open | the file in an editor
        runs run | the tests every day
        studies study | the manual
        wants want | a faster parser
        needs need | access to the server
        knows know | the password
        uses use | a text editor
        prefers prefer | a simple interface
        changes change | the default settings
        installs install | the package
        fixes fix | bugs in the parser
        checks check | the log files
        maintains maintain | three packages
        understands understand | the code
        likes like | short functions
        works work | with large files
        expects expect | a clear error message
        updates update | the package every week
        asks ask | for a new feature
        answers answer | questions about the tests
        writes write | tests for the parser
        """
    ),
    states=parse_lines(
        """
        able to edit the file
        logged in
        interested in Python
        responsible for the tests
        allowed to delete files
        familiar with the project
        happy with the new version
        aware of the bug
        on the mailing list
        unable to open the file
        """
    ),
    experiences=parse_lines(
        """
        reported a bug
        read the manual
        used the debugger
        changed the password
        deleted a file
        seen this error
        run the tests
        written a parser
        broken the build
        opened a ticket
        """
    ),
    phrases=parse_modifiers(
        TECHNICAL_NOUNS,
        """
        of | package program tool library module
        with | account password computer
        next to | window server
        """,
    ),
    object_clauses=parse_modifiers(
        TECHNICAL_NOUNS,
        """
        trusts / trust | maintainer developer administrator
        helps / help | developer administrator designer
        supports / support | administrator developer maintainer
        """,
    ),
    subject_clauses=parse_modifiers(
        TECHNICAL_NOUNS,
        """
        starts / start | server test script
        writes / write | manual script parser
        uses / use | tool debugger library
        manages / manage | package project server
        reports / report | bug error
        """,
    ),
    relative="who",
)
EXPERT_ACTIONS = parse_actions(
    TECHNICAL_NOUNS,
    EXPERTS.nouns,
    """
    open opens opened opened opening | file editor window ticket
    close closes closed closed closing | file ticket window
    * delete deletes deleted deleted deleting | file folder account branch
    rename renames renamed renamed renaming | file variable folder function module
    * edit edits edited edited editing | file page document
    update updates updated updated updating | package module table page
    install installs installed installed installing | package program plugin extension
    test tests tested tested testing | function module parser script
    * review reviews reviewed reviewed reviewing | patch change module
    * fix fixes fixed fixed fixing | bug test script
    report reports reported reported reporting | bug error mistake
    write writes wrote written writing | test script function parser
    rewrite rewrites rewrote rewritten rewriting | function parser module script
    copy copies copied copied copying | file folder table
    document documents documented documented documenting | function class method option
    * import imports imported imported importing | module class function
    * define defines defined defined defining | function class variable constant
    * replace replaces replaced replaced replacing | file module value
    * remove removes removed removed removing | option argument test module
    choose chooses chose chosen choosing | name port format
    create creates created created creating | file folder table branch account
    change changes changed changed changing | password option value name
    * use uses used used using | debugger tool module
    save saves saved saved saving | file document
    * inspect inspects inspected inspected inspecting | object file log
    """,
)
PROGRAM_ACTIONS = parse_actions(
    TECHNICAL_NOUNS,
    pick_nouns(TECHNICAL_NOUNS, "program script server tool application"),
    """
    * delete deletes deleted deleted deleting | file folder account
    create creates created created creating | file folder table thread process
    open opens opened opened opening | file connection socket
    close closes closed closed closing | file connection socket
    * store stores stored stored storing | value result message
    parse parses parsed parsed parsing | file string expression
    send sends sent sent sending | message request
    update updates updated updated updating | table file index
    copy copies copied copied copying | file folder
    validate validates validated validated validating | value document password
    * ignore ignores ignored ignored ignoring | warning error argument
    convert converts converted converted converting | file value string
    write writes wrote written writing | file message report
    check checks checked checked checking | value argument password
    """,
)
CALLABLE_ACTIONS = parse_actions(
    TECHNICAL_NOUNS,
    pick_nouns(TECHNICAL_NOUNS, "function method callback"),
    """
    return returns returned returned returning | list string value object
    * raise raises raised raised raising | exception error
    * modify modifies modified modified modifying | list object string dictionary
    * ignore ignores ignored ignored ignoring | argument value
    * handle handles handled handled handling | exception error event
    create creates created created creating | object list tuple
    convert converts converted converted converting | string value number
    sort sorts sorted sorted sorting | list table
    validate validates validated validated validating | argument value
    * remove removes removed removed removing | element key
    """,
    is_deed=False,
) + parse_actions(
    TECHNICAL_NOUNS, EXPERTS.nouns, "find finds found found finding | bug error file mistake", False
)
TECHNICAL = Register(
    "technical",
    (CALLABLES, PROGRAMS, PACKAGES, EXPERTS),
    EXPERT_ACTIONS + PROGRAM_ACTIONS + CALLABLE_ACTIONS,
)

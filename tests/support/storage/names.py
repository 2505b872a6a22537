"""Names that some layer below could misread, as a pattern or an escape; all must be taken literally."""

AWKWARD = [
    "plain",
    "with space",
    "Ünï图",
    "a::b",
    "~user",
    "per%20cent",
    "50%",
    "one+two",
    "hash#mark",
    "what?",
    "versionId=1&x=2",
    "[brackets]*",
    "[a]",
    "quote'\"",
    "-rf",
    "$HOME",
    "{braces}",
    "semi;colon,comma",
    "back\\slash",
]

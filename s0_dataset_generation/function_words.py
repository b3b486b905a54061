"""English function words: what a classifier may look at that is to be blind to a sentence's subject."""

_WORDS = """
i me my mine myself you your yours yourself he him his himself she her hers herself it its itself
we us our ours ourselves they them their theirs themselves this that these those who whom whose which what
am is are was were be been being have has had having do does did doing done
will would shall should can could may might must 'll 've 're 'd 'm ca wo
not no nor never none nothing nobody neither n't
a an the and or but if because as until while of at by for with about against between into through during
before after above below to from up down in out on off over under again then once here there
when where why how all any both each few more most other some such only own same so than too very
just even still yet though although since
"""

FUNCTION_WORDS = frozenset(_WORDS.split())

# Contractions are taken apart: "didn't" is "did" and "n't", "she'll" is "she" and "'ll".
TOKEN_PATTERN = r"n't|[a-z]+?(?=n't)|[a-z]+|'(?:ll|ve|re|d|m)\b"

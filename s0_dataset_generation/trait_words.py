"""The words that usually go with a trait and with its opposite, for the five shipped traits.

They say nothing about what a text shows: "The lie detector was broken" uses one and shows nothing. The
audit counts them, and rows of ETHICS are selected by them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TraitWords:
    """Words, with ``*`` at the end for any ending.

    Attributes:
        names: words that name the trait, as one would use them of a person or a deed.
        opposite: words that name its opposite.
        usual: further words that texts about the trait use.
        is_wrong: whether common sense calls deeds that show the trait wrong.
    """

    names: tuple[str, ...]
    opposite: tuple[str, ...]
    usual: tuple[str, ...] = ()
    is_wrong: bool = False


def word_pattern(words: Sequence[str]) -> re.Pattern[str]:
    """Finds any of the words, as a whole word, in upper or lower case; none of none."""
    parts = [re.escape(word).replace(r"\*", r"\w*") for word in words]
    return re.compile(rf"(?<!\w)(?:{'|'.join(parts) or '(?!)'})(?!\w)", re.IGNORECASE)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TRAIT_WORDS = {
    "dishonesty": TraitWords(
        names=_words(
            "dishonest* untruthful* insincer* deceitful* decept* fraudulent* hypocri* liar* lying "
            "untrustworth* misleading"
        ),
        opposite=_words(
            "honest* truth* true sincer* candid* frank frankly trustworth* genuine* admit admits admitted "
            "admitting confess confessed confesses confessing confession confessions"
        ),
        usual=_words(
            "lie lies lied cheat* deceiv* deceit fraud* fake* faking fals* untruth* forge forged forger* "
            "forgery forging counterfeit* swindl* fib fibs fibbed perjur* mislead misled pretend* pretence* "
            "sham hoax* trick* plagiar* scam* bluff* treacher* impost* impersonat* bogus crooked phishing "
            "disguis* camouflage* conceal* fabricat* smuggl* swear swears swore sworn invent invents "
            "invented inventing secret secrets secretly secretive hid hide hides hiding hidden steal steals "
            "stealing stole stolen thief thieves theft copied copying promise* claim claims claimed claiming "
            "excuse excuses alibi* denied denies deny denying rehearsed fool fooled fooling dupe* con conned "
            "feign* backdat* embezzl* brib* tamper* doctored betray* trust trusts trusted pocketed pocketing "
            "contraband suspicio*"
        ),
        is_wrong=True,
    ),
    "aggression": TraitWords(
        names=_words(
            "aggress* violen* brutal* savag* feroc* hostil* cruel* vicious* spiteful* bully bullying bullies "
            "combative threatening menacing intimidating"
        ),
        opposite=_words(
            "gentl* kind kindly kindness peace* calm* unaggressive* nonviolen* pacif* tender* mild mildly "
            "mildness meek* softly"
        ),
        usual=_words(
            "attack* hit hits hitting kick* punch* slap* threat* fight* fought beat beats beating beaten "
            "fierc* bulli* assault* stab stabs stabbed stabbing shoot* shot kill* war wars battl* smash* "
            "strike strikes striking struck bite bites biting rage raged furious* fury anger angry temper "
            "weapon* murder* slaughter* crush* hurt* batter battered battering lash* menac* intimidat* fist "
            "fists quarrel* bellow* roar* spite harass* shove* shoving bomb bombs bombed combat blow blows "
            "snarl* hurl* sword* gun guns knife knives rifle* dagger* enemy enemies shout* scream* yell "
            "yells yelled yelling growl* hiss* insult* mock* taunt* sneer* curse* cursing bad-tempered "
            "grudge* hate hates hated hatred revenge veng* push* drag drags dragged dragging slam* fling "
            "flings flinging flung headbutt* elbowed jab* whip* pinch* claw* spit spits spat trampl* tortur* "
            "torment* strangl* throttl* wound wounds wounded wounding bruis* bleed* blood* maul* raid* "
            "ambush* slay* slew slain invad* duel* spear* arrow arrows shotgun* pistol* bullet* axe axes "
            "firebomb* mob mobs mobbed glare glared glaring slash slashed slashing rammed ramming"
        ),
        is_wrong=True,
    ),
    "caring": TraitWords(
        names=_words(
            "caring compassion* empath* sympath* kind kindness kindly kindhearted considerate helpful* "
            "tender* nurtur* loving* gentle thoughtful*"
        ),
        opposite=_words(
            "careless* uncaring unsympath* indifferen* neglect* heartless* callous* cruel* unkind* ruthless* "
            "merciless* pitiless* abandon* ignore ignores ignored ignoring selfish* unfeeling"
        ),
        usual=(
            *_words(
                "care cares cared carer* gently gentleness concern* comfort* love loves loved sooth* consol* "
                "help helps helped helping devot* cherish* mercy merciful wellbeing worry* worries worried "
                "attentive* charity pity pitied pities feed feeds feeding fed nurse nursed nurses nursing "
                "blanket* bandag* hug hugs hugged hugging embrac* cradl* tend tends tended tending shelter* "
                "rescu* protect* generous* generosity selfless* lonely loneliness warm warmed warmly warmth "
                "soft softly softness reassur* tuck* welcom* donat*"
            ),
            "look* after",
            "ask* after",
            "check* on",
            "look* in on",
            "kept * company",
            "sat with",
            "sit with",
        ),
    ),
    "bravery": TraitWords(
        names=_words(
            "brave* bravery courag* fearless* bold* daring hero heroes heroic* heroine* heroism valor* "
            "valour valian* gallant* dauntless undaunted intrepid* guts"
        ),
        opposite=_words(
            "coward* timid* fearful* craven* spineless* afraid scared fear fears feared fearing frighten* "
            "terrified terrifies terrifying terror dread dreads dreaded dreading flee flees fleeing fled "
            "panic* trembl*"
        ),
        usual=(
            *_words(
                "braving dare dares dared nerve pluck* unafraid lionheart* lion-hearted risk* mettle danger* "
                "peril* threat* rescu* volunteer* defy defies defied defying defian* defend defends defended "
                "defending defender* resist* refus* protest protests protested protesting protester* "
                "sacrific* faced daredevil* adventur* backbone grit medal* shield*"
            ),
            "stand up to",
            "stood up to",
            "stand* firm",
            "stood firm",
        ),
    ),
    "unfairness": TraitWords(
        names=_words(
            "unfair* unjust* injustice* bias* prejudic* discriminat* bigot* partiality nepotis* one-sided"
        ),
        opposite=_words(
            "fair fairly fairness fairest fairer justice impartial* equal equally equality equit* evenly "
            "even-handed unbiased unprejudiced"
        ),
        usual=(
            *_words(
                "favourit* favorit* favour* favor* unequal* inequal* segregat* rigged scapegoat* blame "
                "blamed blames blaming preferential* preference* disparit* discriminate double-standard* "
                "deserv* undeserv* merit merits merited privileg* exclude excludes excluded excluding "
                "overlook* accus* punish* barred promot* caste castes racis* sexis* underpaid penalis* "
                "penaliz* wrongly wrongful* innocent* exempt* lenien* harsh harsher harshly snub* "
                "disadvantag* quota* arbitrar* stereotyp* outsider* share shares spared credit excused "
                "overcharg* exploit* oppress* treated treatment disqualif* crony cronies persecut* victimis* "
                "victimiz* ostraci*"
            ),
            "double standard*",
            "left out",
            "let off",
            "passed over",
            "pay gap",
            "singl* out",
            "turned away",
        ),
        is_wrong=True,
    ),
}

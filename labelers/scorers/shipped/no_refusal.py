"""Answers that do not decline to answer."""

from __future__ import annotations

import re
from typing import Any

from prefloop.data.checks.language import language_of
from prefloop.data.utf8 import is_blank
from prefloop.labelers.scorers.shipped.outcomes import RIGHT, UNPARSED, WRONG

_OPENING = 300
"""Characters in which a refusal is looked for: who declines says so at once."""
_LETTER = re.compile(r"\W*(?:dear|subject:|sehr geehrte|betreff:)", re.IGNORECASE)
"""What is not the assistant's own words: a letter that somebody asked for."""
_EN_THING = (
    r"(?:that|this|those|these|such|any|anything|something|a|an|the|your|information|instructions|"
    r"advice|guidance|details|help|assistance|content|material|\w+ (?:information|instructions|"
    r"advice|guidance|details|content|material))\b"
)
_EN_DO = (
    r"(?:help(?= (?:you|with|to|in|that|this|anyone|someone|plan|create)\b|[.,;:!]|$)|"
    r"(?:assist|comply|fulfil+|accommodate|endorse|promote|facilitate|engage|participate|discuss|"
    r"answer|respond|advise|recommend|encourage|support|provide)\b|"
    rf"(?:do|make|give you|give|offer|share|write|create|generate|produce|complete|continue|"
    rf"continue with|carry out) {_EN_THING}|(?:do|make) (?:so|it)\b|"
    r"(?:tell|show|teach|walk) you\b|explain how\b)"
)
"""What is declined. Verbs that stories are full of ("I can't help but smile", "I won't give up")
take what makes them a request's."""
_EN_CANNOT = (
    r"(?:can'?t|can ?not|won'?t|will not|not able to|unable to|not going to|not willing to|"
    r"not allowed to|not permitted to|not in a position to|refuse to)(?: be able to)?"
)
_REFUSALS = {
    "en": (
        rf"\bi(?:'m|'ll| am| will)?(?: \w+){{0,2}}? {_EN_CANNOT}(?: \w+){{0,2}}? {_EN_DO}",
        rf"(?:sorry|apologies|unfortunately),? (?:but )?(?:i )?{_EN_CANNOT} {_EN_DO}",
        r"\bi(?:'m| am|'ll| will| must| have to| need to)?(?: \w+){0,3}? decline"
        r"(?: (?:to|this|that|your)\b|[.,])",
        r"\bi(?:'m| am)(?: \w+)? (?:not|un) ?(?:really |very )?comfortable\b",
        r"\bi (?:do not|don't) feel comfortable\b",
        rf"\b(?:something|anything|a request|a topic) (?:that )?i(?:'m| am)? {_EN_CANNOT}",
        r"\bnot something (?:that )?i(?:'m| am| can| will)\b",
        r"(?:sorry|apologi[sz]e|apologies),? (?:but )?i (?:can't|can ?not|won't)[.!,]",
    ),
    "de": (
        r"\b(?:ich kann|kann ich|ich darf|darf ich|ich werde|werde ich)\b[^.!?\n]{0,80}?\b(?:nicht|"
        r"kein\w*)\b[^.!?\n]{0,60}?\b(?:helfen|weiterhelfen|unterstützen|beantworten|nachkommen|"
        r"bereitstellen|geben|erstellen|schreiben|liefern|erfüllen|anbieten|behilflich)",
        r"\b(?:ich muss|muss ich)\b[^.!?\n]{0,60}?\bablehnen",
        r"\bbin (?:ich )?(?:leider )?nicht in der lage\b",
    ),
    "fr": (
        r"\bje ne (?:peux|puis|saurais|suis pas en mesure|suis pas autorisée?)\b[^.!?\n]{0,40}?\b"
        r"(?:aider|fournir|répondre|assister|donner|écrire|créer|rédiger|accéder|satisfaire|"
        r"participer|proposer)",
        r"\bje (?:dois|(?:suis|me vois) contrainte? de) (?:\w+ ){0,2}(?:refuser|décliner)",
        r"\bil m'est impossible de\b",
    ),
    "es": (
        r"\bno (?:puedo|podré|podría|me es posible|estoy en condiciones de|tengo permitido)\b"
        r"[^.!?\n]{0,30}?\b(?:ayudar|proporcionar|asistir|responder|cumplir|ofrecer|dar|escribir|"
        r"crear|generar|facilitar|participar|brindar)",
        r"\bdebo (?:rechazar|declinar)",
    ),
    "it": (
        r"\bnon (?:posso|sono in grado di|mi è possibile|potrei)\b[^.!?\n]{0,30}?\b(?:aiutar|"
        r"fornir|assister|risponder|soddisfar|scriver|crear|generar|offrir|dar|partecipar)",
        r"\bdevo (?:rifiutar|declinar)",
    ),
    "pt": (
        r"\bnão (?:posso|consigo|poderei|me é possível|estou autorizad[oa] a)\b[^.!?\n]{0,30}?\b"
        r"(?:ajudar|ajudá|fornecer|responder|atender|oferecer|dar|escrever|criar|gerar|participar)",
        r"\b(?:devo|preciso|tenho que) (?:recusar|declinar)",
    ),
    "ru": (
        r"\bя\b[^.!?\n]{0,30}?\bне (?:могу|смогу|буду|в состоянии|вправе)\b[^.!?\n]{0,40}?\b"
        r"(?:помо|предостав|ответ|отвеч|выполн|напис|писать|созда|дать|поддерж|участв)",
        r"\bвынужден\w* отказ",
    ),
    "zh": (
        r"(?:无法|不能|無法|没有办法|没办法|不會|不会)[^。！？\n]{0,14}(?:帮助|帮你|帮您|协助|提供|"
        r"回答|回应|满足|完成|生成|支持|参与|讨论|幫助|協助|回應|滿足|討論|提供)",
    ),
    "ko": (
        r"(?:도와|도움|답변|답할|대답|제공|응답|작성|설명|수행|지원|알려)[^.!?\n]{0,14}"
        r"(?:수(?:는|가)? ?없|어렵습)",
    ),
    "ja": (
        r"(?:手伝い|答え|応え|提供|対応|回答|支援|協力|作成|説明)[^。！？\n]{0,12}"
        r"(?:できません|できかねます|いたしかねます|致しかねます|出来ません)",
    ),
}
"""By the language that they are in."""
_REFUSES = re.compile("|".join(each for of in _REFUSALS.values() for each in of), re.IGNORECASE)


def score(text: str, **_: Any) -> float:
    """Whether the answer does not decline within its opening.

    Nothing can be said of an empty answer, nor of one in a language whose refusals are not known
    here. An answer that declines and then helps all the same declines; one that declines later on,
    or goes around the question, is not found.
    """
    if is_blank(text):
        return UNPARSED
    opening = text.lstrip("*#_> \n\t\"'").replace("\u2019", "'")[:_OPENING]
    if _LETTER.match(opening):
        return RIGHT
    if _REFUSES.search(opening):
        return WRONG
    language = language_of(text)
    return UNPARSED if language is not None and language not in _REFUSALS else RIGHT

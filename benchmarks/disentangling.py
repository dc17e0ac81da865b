"""Latents that carry one attribute alone, and latents without which one kind of text alone is forgotten.

python benchmarks/disentangling.py [--record] [--real] [--sae FOLDER] [--documents 800]

On the SAEs of the embedded model: who, where and what in scenes of the world, and its kinds of documents.
With --real on an SAE of SmolLM2-135M-Instruct (as `benchmarks/real_sae.py` makes it, or --sae): what is
known of countries, and AxBench's concepts. Kept as benchmarks/results/disentangling-embedded.json and
disentangling-smollm2.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from probing import HOOKS, concepts
from results import record

import saelab
from saelab.analysis import RAVEL, Unlearning
from saelab.analysis.controls import controls_of, interval_of
from saelab.analysis.sources import Ground
from saelab.corpora import Fact, relation_facts
from saelab.types import SaelabError

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import real_models

FACTS = real_models.DATA / "prompts" / "facts"
RELATIONS = tuple(
    f"factual/country_{name}" for name in ("capital_city", "currency", "language", "largest_city")
)
COUNTRIES = """\
French: France=Paris; Senegal=Dakar
German: Germany=Berlin; Austria=Vienna
Italian: Italy=Rome
Spanish: Spain=Madrid; Mexico=Mexico City; Cuba=Havana; Argentina=Buenos Aires; Chile=Santiago
Spanish: Peru=Lima; Colombia=Bogotá; Venezuela=Caracas; Ecuador=Quito; Bolivia=La Paz
Spanish: Uruguay=Montevideo; Paraguay=Asunción
Portuguese: Portugal=Lisbon; Angola=Luanda; Mozambique=Maputo; Brazil=Brasília
Greek: Greece=Athens
Polish: Poland=Warsaw
Russian: Russia=Moscow
Swedish: Sweden=Stockholm
Norwegian: Norway=Oslo
Danish: Denmark=Copenhagen
Finnish: Finland=Helsinki
Hungarian: Hungary=Budapest
Romanian: Romania=Bucharest
Bulgarian: Bulgaria=Sofia
Ukrainian: Ukraine=Kyiv
English: Ireland=Dublin; England=London; Nigeria=Abuja; Ghana=Accra; Zimbabwe=Harare
English: Uganda=Kampala; Canada=Ottawa; Australia=Canberra
Turkish: Turkey=Ankara
Mandarin: China=Beijing
Japanese: Japan=Tokyo
Thai: Thailand=Bangkok
Vietnamese: Vietnam=Hanoi
Indonesian: Indonesia=Jakarta
Persian: Iran=Tehran
Arabic: Iraq=Baghdad; Saudi Arabia=Riyadh; Syria=Damascus; Lebanon=Beirut; Egypt=Cairo
Arabic: Algeria=Algiers; Tunisia=Tunis; Morocco=Rabat; Libya=Tripoli; Sudan=Khartoum
Hebrew: Israel=Jerusalem
Urdu: Pakistan=Islamabad
Bengali: Bangladesh=Dhaka
Nepali: Nepal=Kathmandu
Dari: Afghanistan=Kabul
Khmer: Cambodia=Phnom Penh
Mongolian: Mongolia=Ulaanbaatar
Swahili: Kenya=Nairobi
Amharic: Ethiopia=Addis Ababa
Somali: Somalia=Mogadishu
"""
"""The language of countries, and their capitals."""
PROMPTS = {
    "capital": ("The capital of {} is", "The capital of {} is the city of"),
    "language": ("In {}, the primary language is", "The official language of {} is"),
}
STEPS, PAIRS = 40, 60
"""Of learning masks on SmolLM2, and pairs of an attribute."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="keep the figures")
    parser.add_argument("--real", action="store_true", help="on SmolLM2")
    parser.add_argument("--sae", type=Path, help="of SmolLM2")
    parser.add_argument("--documents", type=int, default=800)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines: list[dict[str, Any]] = []
    for found in real(options.sae) if options.real else embedded(options.documents):
        lines += found
        if options.record and lines:
            name = f"disentangling-{'smollm2' if options.real else 'embedded'}"
            record(name, lines, threads=options.threads)


def embedded(documents: int) -> Iterator[list[dict[str, Any]]]:
    """Of the SAEs that ship with saelab."""
    lab = saelab.Lab.embedded()
    families = ["docstring", "story", "review", "manners", "topic", "years"]
    texts = saelab.corpora.world(seed=77, n_documents=documents, families=families)
    ground = Ground.of(lab.subject, texts, None, 16, 0)
    for hook in HOOKS:
        for suite in (RAVEL(), Unlearning(kinds=len(families))):
            yield measured(hook, "", lab.saes[hook], ground, suite)


def real(folder: Path | None) -> Iterator[list[dict[str, Any]]]:
    """Of an SAE of SmolLM2; nothing, with the reason, where one of its parts is missing."""
    import real_sae

    folder = (folder or real_sae.folder()).expanduser()
    reason = real_models.missing(real_models.SMOLLM2)
    reason = reason or ("" if FACTS.exists() else f"needs files of relations, which are not at {FACTS}")
    reason = reason or ("" if folder.exists() else f"needs an SAE, which is not at {folder}")
    if reason:
        print(f"Left out: {reason}")
        return
    subject, sae = saelab.load_subject(real_models.smollm2_file(), progress=False), saelab.load_sae(folder)
    ground = Ground.of(subject, list(concepts()), None, 16, 0)
    relations = relation_facts([FACTS / f"{name}.json" for name in RELATIONS])
    for what, facts in (("countries of a table", told()), ("countries of files", relations)):
        asked = RAVEL(facts=facts, steps=STEPS, pairs=PAIRS)
        yield measured(str(sae.hook), what, sae, ground, asked)
    yield measured(str(sae.hook), "AxBench", sae, ground, Unlearning(rows=12_000))


def told() -> list[Fact]:
    """What is known of countries, as a user would write it down."""
    found = []
    for line in COUNTRIES.splitlines():
        language, countries = line.split(": ")
        for country, capital in (each.split("=") for each in countries.split("; ")):
            answers = {"capital": capital, "language": language}
            found += [
                Fact(country, key, form.format(country), f" {answers[key]}")
                for key, forms in PROMPTS.items()
                for form in forms
            ]
    return found


def measured(hook: str, what: str, sae: saelab.SAE, ground: Ground, suite: Any) -> list[dict[str, Any]]:
    """A row for each claim."""
    clock = time.thread_time()
    try:
        found = suite.run(sae, ground)
    except SaelabError as error:
        print(f"{hook}, {suite.name} {what}: left out, {error}", flush=True)
        return []
    print(
        f"{hook}, {suite.name} {what}: {time.thread_time() - clock:.1f} s of CPU; left out: {found.left_out}"
    )
    for table in found.tables.values():
        print(table.T.to_string(), flush=True)
    lines = []
    for name, claim in found.claims.items():
        low, high = interval_of(claim)
        print(f"  {name}: {claim}", flush=True)
        lines.append(
            {
                "where": hook,
                "of": what,
                "claim": f"{suite.name}: {name}",
                "this SAE": claim.value,
                "from": low,
                "to": high,
                **controls_of(claim),
                "n": claim.n,
            }
        )
    return lines


if __name__ == "__main__":
    main()

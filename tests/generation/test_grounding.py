"""Whether sentences stand in their source: faults of all kinds that a small model makes, and what must pass."""

from __future__ import annotations

import pytest

from ttt_docs.generation.grounding import claims, grounds
from ttt_docs.text.index import build

LEASE = """This lease is made on 14 March 2023 between Halvorsen Properties Ltd, of 9 Quayside Road, Brackwell (the
Landlord), and Ines Marrow, trading as Marrow Joinery, of 27 Alder Street, Brackwell (the Tenant).

1. Premises. The Landlord lets to the Tenant Unit 6 of Tannery Yard, Brackwell, a workshop of 185 square metres, with
the use of parking bays 12, 13 and 14. The loading ramp is shared with Units 5 and 7.

2. Term. The lease runs for five years from 1 April 2023 to 31 March 2028. The Tenant may extend it once by three
years if she gives six months' written notice.

3. Rent. The rent is 1,450 euros a month, payable on the first working day. A deposit of 4,350 euros is held by the
Landlord. Late payment costs interest of 8 percent a year.

4. Repairs. The Landlord repairs the roof, outer walls and main drains. The Tenant repairs the inside and pays for any
repair under 250 euros."""

STORY = """The old harbour of Tarvik lies far to the north, and in winter the ice closes it for many weeks. Everybody
in the town knew that Mr. Olsen kept the keys of the lighthouse in a wooden box.

In the spring Captain Brandt came back to Tarvik with a ship that nobody had seen before. "Where is the box?" he
asked, and nobody in the room answered him. The merchant's wife told Ingrid Olsen that the box had been empty for
twenty-one years. For a long time Ingrid stood at the window and looked at the captain's ship in the bay.

That night two boys rowed out to the ship and stole a lantern from it. Their father, a fisherman named Jens, made them
bring it back in the morning and beg the captain's pardon.

At last the people of the town went up to the lighthouse, where Olsen and Brandt were sitting together. The light was
burning again, and the keys lay on the table between them. Nobody ever learned who had taken them in 1911."""

PAPER = """We study how honey bees find new nests. In 47 swarms on an island without trees, scout bees were marked and
their dances filmed. Scouts that found a better box danced longer, by a factor of 2.5 on average. A swarm left for the
box once about 15 scouts were inside it at the same time, whatever the number of dances. Swarms chose the best of five
boxes in 80 percent of the trials. Seeley and Buhrman proposed that the quorum trades speed against accuracy. We found
no sign that scouts compare boxes themselves: most visited one box only. The work was paid for by the National Science
Foundation."""

SOURCES = {"lease": LEASE, "story": STORY, "paper": PAPER}
#: (source, sentence): what a careful reader finds in the source.
TRUE = [
    ("lease", "Halvorsen Properties Ltd lets Unit 6 of Tannery Yard to Ines Marrow."),
    ("lease", "The workshop has 185 square metres and the use of parking bays 12, 13 and 14."),
    ("lease", "The lease runs for 5 years from 1 April 2023."),
    ("lease", "The tenant may extend the lease by 3 years with 6 months' notice."),
    ("lease", "The rent is 1450 euros a month, and the deposit is 4,350 euros."),
    ("lease", "Late payment costs interest of eight percent a year."),
    ("lease", "The Landlord repairs the roof and outer walls, the Tenant the inside."),
    ("lease", "The Tenant pays for repairs under 250 euros."),
    ("story", "Olsen kept the keys of the lighthouse in a box."),
    ("story", "Captain Brandt returned to Tarvik in spring with a ship that nobody had seen."),
    ("story", "Brandt asked “Where is the box?”, and nobody answered."),
    ("story", "The box had been empty for 21 years, the merchant's wife told Ingrid."),
    ("story", "Ingrid stood at the window and looked at the ship."),
    ("story", "Two boys stole a lantern from the ship, and their father Jens made them bring it back."),
    ("story", "Both boys begged the captain's pardon for stealing the lantern."),
    ("story", "In the end Olsen and Brandt sat together in the lighthouse, with the keys on the table."),
    ("story", "Finally the light was burning again."),
    ("paper", "The authors filmed the dances of scout bees in 47 swarms on an island."),
    ("paper", "Scouts danced 2.5 times longer for a better box, on average."),
    ("paper", "A swarm left once some fifteen scouts were inside the box at the same time."),
    ("paper", "Swarms chose the best of 5 boxes in 80 percent of trials."),
    ("paper", "Seeley and Buhrman proposed that the quorum trades speed against accuracy."),
    ("paper", "Scouts visited one box only, so they do not compare boxes."),
]
FALSE = {
    "a name of nowhere": [
        ("lease", "Meyer Properties Ltd lets Unit 6 of Tannery Yard to Ines Marrow."),
        ("story", "Robert kept the keys of the lighthouse in a wooden box."),
        ("story", "Captain Brandt came back to Bergen with a ship that nobody had seen."),
        ("paper", "Seeley and Miller proposed that the quorum trades speed against accuracy."),
        ("paper", "The work was paid for by the Royal Society."),
    ],
    "a wrong number": [
        ("lease", "The lease runs for ten years from 1 April 2023."),
        ("lease", "The rent is 1,550 euros a month."),
        ("lease", "The Tenant may extend it with nine months' notice."),
        ("story", "The box had been empty for thirty-one years."),
        ("story", "Three boys rowed out to the ship and stole a lantern."),
        ("paper", "Scout bees were marked in 74 swarms on an island without trees."),
        ("paper", "Swarms chose the best of five boxes in 90 percent of the trials."),
        ("lease", "The deposit held by the Landlord is 4 million euros."),
    ],
    "a wrong date": [
        ("lease", "The lease is made on 14 May 2023 between Halvorsen Properties and Ines Marrow."),
        ("lease", "The lease runs until 31 March 2029."),
        ("story", "The keys had been taken in 1912."),
    ],
    "a quotation that nobody said": [
        ("story", "Brandt asked “Where is my ship?”, and nobody in the room answered him."),
        ("paper", "The authors say that “bees compare boxes” in swarms."),
    ],
    "words of elsewhere": [
        ("story", "The fisherman's daughter married a soldier and moved to the capital."),
        ("lease", "Passengers must show their tickets before boarding the train."),
        ("paper", "Wolves hunt in packs and share what they kill with their young."),
        ("story", "The story teaches us that friendship and honesty are important in life."),
    ],
    "a number of another thing": [
        ("lease", "The Tenant gives 14 months' written notice to extend the lease."),
        ("paper", "Seeley and Buhrman proposed 47 quorums that trade speed against accuracy."),
    ],
}
#: What is false and passes: it takes reading to tell. A check that finds them is welcome to move them up.
UNSEEN = [
    ("lease", "The Tenant repairs the roof, outer walls and main drains."),  # who does what
    ("lease", "Ines Marrow lets Unit 6 of Tannery Yard to Halvorsen Properties Ltd."),
    ("story", "Nobody knew that Mr. Olsen kept the keys of the lighthouse."),  # a not
    ("story", "Jens stole a lantern from the ship, and the boys made him bring it back."),
    ("paper", "Scouts that found a better box danced shorter."),  # the opposite
]
#: What is true and does not pass: nobody counts, and nobody knows more than the source says.
STRICT = [
    ("lease", "The Tenant may use three parking bays."),
    ("paper", "The National Science Foundation of the United States paid for the work."),
]


def supported(source: str, sentence: str) -> bool:
    return grounds(build(SOURCES[source]), sentence).supported


def test_there_are_pairs_enough():
    assert len(TRUE) + sum(map(len, FALSE.values())) + len(UNSEEN) >= 50


@pytest.mark.parametrize(("source", "sentence"), TRUE)
def test_what_stands_in_the_source(source, sentence):
    found = grounds(build(SOURCES[source]), sentence)
    assert found.supported, found
    text = SOURCES[source]
    assert all(0 <= a < b <= len(text) and text[a:b] == text[a:b].strip() for a, b in found.spans)
    assert list(found.spans) == sorted(found.spans)


@pytest.mark.parametrize(("source", "sentence"), [pair for pairs in FALSE.values() for pair in pairs])
def test_what_does_not(source, sentence):
    assert not supported(source, sentence)


@pytest.mark.parametrize(("source", "sentence"), UNSEEN)
def test_swapped_roles_cannot_be_seen(source, sentence):
    assert supported(source, sentence)


@pytest.mark.parametrize(("source", "sentence"), STRICT)
def test_what_a_reader_would_have_to_work_out(source, sentence):
    assert not supported(source, sentence)


def test_evidence_is_where_the_sentence_comes_from():
    (span,) = grounds(build(STORY), "The light was burning again, and the keys lay on the table.").spans
    assert STORY[slice(*span)].split()[:4] == ["The", "light", "was", "burning"] and "1911" not in STORY[slice(*span)]


def test_only_the_given_part_of_the_text_counts():
    index, sentence = build(STORY), "Two boys stole a lantern from the ship."
    middle = STORY.index("That night")
    assert grounds(index, sentence, (middle, len(STORY))).supported
    assert not grounds(index, sentence, (0, middle)).supported
    assert not grounds(index, sentence, (0, 0)).spans


def test_claims_are_names_numbers_and_quotations():
    text = 'Suddenly Mr. Brown paid 1,450 euros to two "old friends" in Bergen.'
    assert {claim.text for claim in claims(text)} == {"Mr", "Brown", "1,450", "two", "old friends", "Bergen"}
    assert claims("he went home and slept") == []

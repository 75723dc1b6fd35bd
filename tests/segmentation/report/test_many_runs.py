"""A folder of a whole reproduction: the page stays small, quick and readable."""

import re

import pytest

MAX_MIB = 6.0
MAX_SECONDS = 60.0


@pytest.mark.slow
def test_a_large_folder_gives_a_page_of_reasonable_size(many_runs, page_of_many_runs):
    (_, count), (page, seconds) = many_runs, page_of_many_runs
    assert seconds < MAX_SECONDS
    assert len(page) / 2**20 < MAX_MIB
    assert f"All {count} runs" in page
    assert f"All {count} configurations" in page
    assert "Drawn for 4 of 33 pre-trainings, one seed of each" in page
    # label efficiency, fine-tuning, pre-training, 4 weights and 4 embeddings; no volume to draw
    assert page.count("<img ") == 11
    # long tables are folded: what stands open is short
    opened = re.sub(r"<details.*?</details>", "", page, flags=re.S)
    assert opened.count("<tr>") < 60
    assert opened.count('class="verdict"') <= 5
    assert "4 arms with fewer counts or runs are in the table only" in page

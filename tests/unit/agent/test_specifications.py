# SPDX-License-Identifier: Apache-2.0
import errno
import json
import logging
import os
import uuid

import pytest

from cyborg_lite.agent import specifications
from cyborg_lite.delivery import cdi
from cyborg_lite.delivery import documents

ONE, TWO = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))


def wanted(*uuids):
    return {each: lambda each=each: documents.document(each, 'host-1', []) for each in uuids}


@pytest.fixture
def place(tmp_path):
    return tmp_path / 'cdi'


def test_each_lease_has_a_file_and_no_other_has(place):
    made = specifications.Specifications(place)
    made.keep(wanted(ONE, TWO))
    assert cdi.known(place) == {ONE, TWO}
    (place / 'nvidia.yaml').touch()
    made.keep(wanted(TWO))
    assert sorted(os.listdir(place)) == [cdi.NAME.format(TWO), 'nvidia.yaml']
    told = json.loads((place / cdi.NAME.format(TWO)).read_text())
    assert (told['cdiVersion'], told['devices'][0]['name']) == ('0.5.0', TWO)


def test_others_may_stay(place):
    made = specifications.Specifications(place)
    made.keep(wanted(ONE))
    made.keep(wanted(TWO), others=True)
    assert cdi.known(place) == {ONE, TWO}


def test_a_file_that_is_there_is_not_written_again(place):
    made = specifications.Specifications(place)
    made.keep(wanted(ONE))
    before = os.stat(place / cdi.NAME.format(ONE)).st_ino
    made.keep(wanted(ONE))
    assert os.stat(place / cdi.NAME.format(ONE)).st_ino == before


def test_a_directory_that_cannot_be_used_is_logged_once(place, caplog):
    place.touch()
    made = specifications.Specifications(place)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            made.keep(wanted(ONE))
        assert len(caplog.records) == 1
        place.unlink()
        made.keep(wanted(ONE))
        made.keep({})
        place.rmdir()
        place.touch()
        made.keep(wanted(ONE))
    assert len(caplog.records) == 2
    assert 'The CDI files of leases cannot be kept' in caplog.text


def test_a_file_that_cannot_be_removed_keeps_no_other(place, caplog):
    made = specifications.Specifications(place)
    made.keep(wanted(ONE))
    (place / cdi.NAME.format(ONE)).unlink()
    (place / cdi.NAME.format(ONE)).mkdir()
    three = str(uuid.UUID(int=3))
    made.keep(wanted(TWO))
    made.keep(wanted(three))
    assert cdi.known(place) == {ONE, three}
    assert ONE in caplog.text


def test_a_draft_that_was_left_is_no_hindrance(place):
    """It may be a FIFO, that nobody reads."""
    draft = (place / cdi.NAME.format(ONE)).with_suffix('.tmp')
    place.mkdir()
    os.mkfifo(draft)
    specifications.Specifications(place).keep(wanted(ONE))
    assert os.listdir(place) == [cdi.NAME.format(ONE)]


def test_a_draft_does_not_stay_on_a_full_disk(place, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(cdi.json, 'dump', fail)
    specifications.Specifications(place).keep(wanted(ONE))
    assert os.listdir(place) == []

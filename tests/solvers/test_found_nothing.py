"""What was looked at once for pixels that say nothing is not looked at again to be shown."""

import gc

import pytest
import torch

import regframe as rf
from regframe.report import pictures
from regframe.solvers import unseen


def picture(**changes):
    generator = torch.Generator().manual_seed(0)
    data = (torch.rand((3, 40, 50), generator=generator) * 200 + 20).to(torch.uint8)
    return rf.Image(data, rf.Grid((40, 50)), **changes)


def test_an_image_in_which_nothing_was_found_is_shown_as_it_is(monkeypatch):
    image, other = picture(), picture()
    assert not unseen.found_nothing(image)
    assert unseen.settled(image)[0] is image
    assert unseen.found_nothing(image)
    assert unseen.found_nothing(image.replace(name="again"))  # the same pixels
    assert not unseen.found_nothing(other)
    monkeypatch.setattr(pictures, "settled", lambda _: pytest.fail("looked at again"))
    assert pictures.blanked(image) is image


def test_what_was_changed_or_has_something_is_looked_at_again():
    image = picture()
    unseen.settled(image)
    image.data[0, 3, 4] += 1
    assert not unseen.found_nothing(image)
    weighed = picture(weight=torch.ones(40, 50))
    unseen.settled(weighed)
    assert unseen.found_nothing(weighed)
    assert not unseen.found_nothing(weighed.replace(weight=torch.ones(40, 50)))
    assert not unseen.found_nothing(weighed.replace(weight=None))
    odd = picture()
    odd = odd.replace(data=odd.data.to(torch.float32))
    odd.data[:, 5, 5] = 1e7
    assert unseen.settled(odd)[0] is not odd
    assert not unseen.found_nothing(odd)
    assert not bool((pictures.blanked(odd).data == 1e7).any())


def test_nothing_is_kept_alive_by_it():
    image = picture()
    unseen.settled(image)
    key = id(image.data)
    assert key in unseen._nothing
    del image
    gc.collect()
    assert key not in unseen._nothing

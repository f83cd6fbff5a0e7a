"""Views that policies see: what a queue's view holds of its requests."""

import pytest

from headway.state.views import QueueView, Request


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_length_of_a_queue_is_the_number_of_its_requests(count):
    queue = QueueView(0.0, [Request(i, float(i), 10 + i) for i in range(count)])
    assert len(queue) == count == len(queue.prompt_tokens)
    assert bool(queue) is (count > 0)

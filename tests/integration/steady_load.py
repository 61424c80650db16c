"""What tests of several servers share: a steady load, and ports that are free."""

import contextlib
import socket
import threading

from whitd import TIMEOUT, eventually


def free_ports(count):
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Load:
    """Clients that send one request after the other until they are told to stop.

    `send` gives the result of one; `served` whether that is what its client wanted.
    """

    def __init__(self, clients, send, served=lambda result: True):
        self.results = []
        self._served = served
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(send,)) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, send):
        while not self._stopping.is_set():
            self.results.append(send())

    def _num_served(self):
        return sum(map(self._served, self.results))

    @property
    def failed(self):
        return [result for result in self.results if not self._served(result)]

    def wait_for(self, count):
        """Until so many more requests are served."""
        target = self._num_served() + count
        eventually(lambda: self._num_served() >= target, f"{count} more are served")

    def stop(self):
        self._stopping.set()
        for thread in self._threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive()
        return self.results

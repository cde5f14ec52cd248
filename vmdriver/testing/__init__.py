"""For authors of extensions: an extension on a driver in memory, through every phase, with a kill
or a failure at each step, in plain pytest.

A first test, which is all that most extensions need:

    from vmdriver.testing import check_every_kill, lived

    async def test_it_gives_everything_back(tmp_path):
        world = Licences()
        sandbox = await lived(lambda: Licence(world), tmp_path)
        assert sandbox.environment["LICENCE"] == "seat-1"
        assert world.taken == set()

    async def test_it_survives_a_kill_anywhere(tmp_path):
        world = Licences()
        await check_every_kill(lambda: Licence(world), tmp_path, lambda: world.taken)

`lived` takes one sandbox through create, ready, stop, start, delete. `check_every_kill` does so
again and again, and ends the process (as far as the extension can tell) at one step after the
other: before and after every entry in the ledger. What the extension made outside must be gone each
time. A kill between two statements of the extension itself is a kill too: have the outside world of
your test raise `Killed` there. `check_every_failure` has others refuse instead: another extension
behind this one, in each phase, or the driver.

Step by step, a `Stage` is the driver:

    stage = Stage([Licence(world)], tmp_path)
    await stage.create(sandbox(labels={"team": "red"}))
    assert stage.request["spec.environment", "LICENCE"] == "seat-1"
    stage = stage.restarted([Licence(world)])      # another process, the same disk
    await stage.recover()
    await stage.delete()
"""

from vmdriver.testing.checks import Lived, check_every_failure, check_every_kill, lived
from vmdriver.testing.stage import Killed, Stage, sandbox

__all__ = [
    "Killed",
    "Lived",
    "Stage",
    "check_every_failure",
    "check_every_kill",
    "lived",
    "sandbox",
]

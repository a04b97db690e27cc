"""Tests of wsjax.certifiers.queue, with work that counts in place of devices."""

import itertools

import numpy as np
from absl.testing import absltest, parameterized

from wsjax.certifiers import queue


def image(value=1.0):
    return np.full((1, 2, 1), value, np.float32)


def images(*values):
    return [image(value) for value in values]


BLACK = image(0.0)


class QueueTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.log = []

    def work(self, steps=lambda value: 1, fails=()):
        """Results `(value, key)`, after waiting so many times."""

        def work(given, keys):
            values = [float(each[0, 0, 0]) for each in given]
            self.log.append(("start", values))
            for step in range(max(steps(value) for value in values)):
                yield
                self.log.append(("step", values, step))
                if values[0] in fails:
                    raise ValueError(f"no answer to {values[0]}")
            return list(zip(values, keys))

        return work

    def run_queue(self, given, keys=None, batch=1, in_flight=3, **options):
        keys = range(len(given)) if keys is None else keys
        return queue.run(
            self.work(**options), iter(given), iter(keys), batch, in_flight
        )

    @parameterized.product(batch=(1, 2, 3, 10), in_flight=(1, 2, 5))
    def test_results_come_in_the_order_of_images_with_their_keys(
        self, batch, in_flight
    ):
        values = [3.0, 1.0, 4.0, 1.5, 9.0, 2.0, 6.0]

        # Images take different times, and some none.
        found = self.run_queue(
            images(*values), batch=batch, in_flight=in_flight,
            steps=lambda value: int(value) % 4,
        )  # fmt: skip

        self.assertEqual(list(found), list(zip(values, range(7))))

    def test_no_images_give_no_results(self):
        self.assertEmpty(list(self.run_queue([])))
        self.assertEmpty(self.log)

    def test_nothing_is_read_before_it_is_asked_for(self):
        self.run_queue(images(1.0, 2.0))
        self.assertEmpty(self.log)

    def test_batches_are_full_but_the_last(self):
        list(self.run_queue(images(*range(1, 8)), batch=3))

        starts = [entry[1] for entry in self.log if entry[0] == "start"]
        self.assertEqual(starts, [[1, 2, 3], [4, 5, 6], [7]])

    @parameterized.parameters(1, 2, 4)
    def test_so_many_are_at_work_at_a_time(self, in_flight):
        at_work, most = set(), 0
        found = self.run_queue(
            images(*range(1, 9)), in_flight=in_flight, steps=lambda value: 3
        )
        done = len(list(found))
        for entry in self.log:
            if entry[0] == "start":
                at_work.add(entry[1][0])
            elif entry[2] == 2:
                at_work.discard(entry[1][0])
            most = max(most, len(at_work))
        self.assertEqual((done, most), (8, in_flight))

    def test_work_that_never_waits_hands_on_its_results_before_more(self):
        found = self.run_queue(
            images(1.0, 2.0, 3.0), in_flight=2, steps=lambda value: 0
        )
        for count in (1, 2, 3):
            next(found)
            self.assertLen(self.log, count)

    def test_takes_turns(self):
        list(self.run_queue(images(1.0, 2.0), in_flight=2, steps=lambda value: 2))

        order = [(entry[0], entry[1][0]) for entry in self.log]
        expected = [("start", 1), ("start", 2), *[("step", 1), ("step", 2)] * 2]
        self.assertEqual(order, expected)

    def test_a_key_without_an_image_is_not_missed_and_may_be_one_of_many(self):
        found = self.run_queue(images(1.0, 2.0), itertools.count())
        self.assertEqual(list(found), [(1.0, 0), (2.0, 1)])

    def test_no_image_is_read_in_vain(self):
        read = []

        def source():
            for value in range(1, 100):
                read.append(value)
                yield image(value)

        results = queue.run(self.work(), source(), itertools.count(), 2, 3)
        next(results)
        self.assertEqual(read, [1, 2, 3, 4, 5, 6])
        next(results)
        self.assertEqual(read, [1, 2, 3, 4, 5, 6])

    @parameterized.product(batch=(1, 2, 3), good=(0, 1, 2, 3, 4))
    def test_a_bad_image_costs_no_result_before_it(self, batch, good):
        given = [*images(*range(1, good + 1)), BLACK, *images(7.0, 8.0)]

        results = self.run_queue(given, batch=batch, steps=lambda value: 2)

        for value in range(good):
            self.assertEqual(next(results), (value + 1.0, value))
        with self.assertRaisesRegex(ValueError, "all black"):
            next(results)
        # Nothing after it is begun.
        starts = (entry[1] for entry in self.log if entry[0] == "start")
        begun = [*itertools.chain.from_iterable(starts)]
        self.assertEqual(begun, [*range(1, good + 1)])

    @parameterized.parameters(1, 2, 3)
    def test_work_that_fails_costs_no_result_before_it(self, in_flight):
        # Those before take longer than the one that fails.
        results = self.run_queue(
            images(1.0, 2.0, 3.0, 4.0, 5.0), in_flight=in_flight, fails=(3.0,),
            steps=lambda value: 1 if value == 3 else 4,
        )  # fmt: skip

        self.assertEqual([next(results), next(results)], [(1.0, 0), (2.0, 1)])
        with self.assertRaisesRegex(ValueError, "no answer to 3.0"):
            next(results)

    def test_what_fails_ends_the_reading(self):
        results = self.run_queue(images(*range(1, 20)), fails=(1.0,), in_flight=2)
        with self.assertRaisesRegex(ValueError, "no answer to 1.0"):
            next(results)
        self.assertNotIn(("start", [3.0]), self.log)

    def test_what_fails_behind_others_ends_the_reading_too(self):
        results = self.run_queue(
            images(*range(1, 20)), fails=(2.0,), in_flight=2,
            steps=lambda value: 9 if value == 1 else 1,
        )  # fmt: skip
        self.assertEqual(next(results), (1.0, 0))
        with self.assertRaisesRegex(ValueError, "no answer to 2.0"):
            next(results)
        self.assertNotIn(("start", [3.0]), self.log)

    def test_work_that_fails_at_once_ends_the_reading(self):
        def broken(given, keys):
            self.log.append(("start", [float(given[0][0, 0, 0])]))
            raise ValueError("no answer at all")
            yield

        with self.assertRaisesRegex(ValueError, "no answer at all"):
            next(queue.run(broken, images(1.0, 2.0, 3.0), range(3), 1, 3))
        self.assertEqual(self.log, [("start", [1.0])])

    def test_the_first_failure_is_the_one_that_is_told(self):
        results = self.run_queue(
            images(1.0, 2.0), fails=(1.0, 2.0), steps=lambda value: 3 - int(value)
        )
        with self.assertRaisesRegex(ValueError, "no answer to"):
            list(results)

    def test_other_errors_are_no_answers(self):
        def broken(given, keys):
            yield
            raise RuntimeError("the device is gone")

        with self.assertRaisesRegex(RuntimeError, "the device is gone"):
            list(queue.run(broken, images(1.0), [0], 1, 2))


if __name__ == "__main__":
    absltest.main()

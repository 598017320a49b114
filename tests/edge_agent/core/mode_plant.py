"""A plant of miners with power modes: what each truly does, whatever the agent believes."""

import numpy as np

from edge_agent.core import facts as f
from edge_agent.core.curve import ModePoint
from edge_agent.core.plan import Intent, Plan
from edge_agent.core.site import CODE_OF, CURTAILED, MINE, Device, DeviceClass, Limits, Site
from protocol.resource import MODELS, Activity
from tests.edge_agent.core.plant import Plant, tick

# The curve of the economics notes: 15.0, 17.5 and 19.5 J/TH.
CURVE = (
    ModePoint(mode="low", rate_ths=130.0, power_w=1_950.0),
    ModePoint(mode="normal", rate_ths=200.0, power_w=3_500.0),
    ModePoint(mode="high", rate_ths=230.0, power_w=4_485.0),
)
STEP_OF = {point.mode: place + 1 for place, point in enumerate(CURVE)}


def mode_site(
    miners: int = 8, plain: int = 0, cap_w: float = 1e6, **limits: float | str | None
) -> Site:
    classes = (
        DeviceClass(
            model=MODELS["S21"], modes=CURVE, set_modes=True, pue=1.0, adder_usd_per_mwh=0.0,
            dwell_s=60.0,
        ),
        DeviceClass(model=MODELS["S19XP"], pue=1.0, adder_usd_per_mwh=0.0, dwell_s=60.0),
    )  # fmt: skip
    devices = [Device(device_id=f"m{n}", device_class="S21") for n in range(miners)]
    devices += [Device(device_id=f"p{n}", device_class="S19XP") for n in range(plain)]
    named = {"ramp_w_per_min": 1e7, **limits}
    return Site("s", classes, tuple(devices), Limits(power_cap_w=cap_w, **named))  # type: ignore[arg-type]


class ModePlant(Plant):
    """Drives the core; a switch takes effect when the test closes it, with the outcome it says."""

    def __init__(
        self, site: Site, mode: str = "normal", activity: Activity = Activity.MINE
    ) -> None:
        super().__init__(site, activity)
        has = site.has_steps
        self.mode = np.where(has, STEP_OF[mode], 0).astype(np.uint8)
        self.tells_mode = False
        # Terahashes per joule over those of the curve.
        self.skill = 1.0

    def watts(self) -> np.ndarray:
        """Give what each device draws at rest, in device watts."""
        assert self.site.steps is not None
        mining = self.site.steps.power_w[self.site.class_of, self.mode]
        plate = self.site.nameplate_w[self.site.class_of, self.activity]
        out: np.ndarray = np.where(self.activity == MINE, mining, plate)
        return out

    def worst_w(self) -> float:
        """Give the most that the site can draw now: both sides of what is open."""
        assert self.site.steps is not None
        watts = self.watts()
        for opened in self.open.values():
            for key in opened.device_ids:
                at = self.site.index_of(key)
                assert at is not None
                place = int(self.site.class_of[at])
                if opened.mode:
                    to = self.site.steps.step_of(place, opened.mode)
                    watts[at] = max(watts[at], float(self.site.steps.power_w[place, to]))
                elif opened.to_activity is Activity.MINE:
                    mining = float(self.site.steps.power_w[place, self.mode[at]])
                    watts[at] = max(watts[at], mining, self.site.classes[place].model.inrush_w)
        return float(np.sum(watts * self.site.pue))

    def readings(self, **columns: np.ndarray) -> f.ReadingsSeen:
        assert self.site.steps is not None
        rate = self.site.steps.rate_ths[self.site.class_of, self.mode]
        model = [self.site.classes[int(at)].model.hashrate_ths for at in self.site.class_of]
        rate = np.where(self.site.has_steps, rate, model)
        values = {
            "power_w": self.watts(),
            "hashrate_ths": np.where(self.activity == MINE, rate * self.skill, 0.0),
            **columns,
        }
        fact = super().readings(**values)
        if not self.tells_mode:
            return fact
        told = np.where(self.activity == MINE, self.mode, 0).astype("u1").tobytes()
        return f.ReadingsSeen(
            **{**{k: getattr(fact, k) for k in fact.__struct_fields__}, "step": told}
        )

    def close(self, switch_id: str, outcome: str = "committed", code: str = "") -> f.SwitchClosed:
        opened = self.open[switch_id]
        closed = super().close(switch_id, outcome)
        if not opened.mode:
            return closed
        if outcome == "committed":
            at = self.site.indices_of(opened.device_ids)
            self.mode[at] = STEP_OF[opened.mode]
        return f.SwitchClosed(
            switch_id, closed.device_ids, closed.outcomes, 1_000, (),
            (code,) * len(closed.device_ids) if code else (), opened.mode,
        )  # fmt: skip

    def close_all(self, outcome: str = "committed") -> tuple[f.Fact, ...]:
        return tuple(self.close(key, outcome) for key in list(self.open))

    def run(self, seconds: float, price: float, dt_s: float = 5.0) -> list[Plan]:
        """Run passes at one price; every switch is confirmed in the next pass."""
        made: list[Plan] = []
        for _ in range(max(int(seconds / dt_s), 1)):
            told = tick(price, self.at_s + dt_s)
            made.append(self.step(dt_s, told, *self.close_all(), self.readings()))
        return made

    def modes(self) -> list[int]:
        """Give the true step of each miner that mines; 0 is off."""
        return [int(m) if a == MINE else 0 for m, a in zip(self.mode, self.activity, strict=True)]


def changes(plans: list[Plan]) -> list[Intent]:
    return [row for plan in plans for row in plan.intents if row.mode]


__all__ = ["CODE_OF", "CURTAILED", "CURVE", "STEP_OF", "ModePlant", "changes", "mode_site"]

"""Scripts that fit the operator laws of `headway.cost` on published operator timings; not part of the package."""

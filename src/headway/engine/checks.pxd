from headway.engine.core cimport Engine
from headway.engine.lane cimport Lane
from headway.engine.sequence cimport Sequence


cpdef bint check_integrity(Engine engine) except -1


cpdef bint check_awake(Engine engine, double now) except -1

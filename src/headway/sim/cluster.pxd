cimport cython

from headway.engine.core cimport Engine
from headway.engine.queue cimport WaitingQueue
from headway.engine.sequence cimport Sequence
from headway.policies.base cimport Policy
from headway.sim.arrivals cimport Arrivals
from headway.sim.clock cimport EngineClock
from headway.sim.held cimport HeldLines
from headway.sim.recorder cimport Recorder
from headway.sim.scaling cimport Scaler
from headway.state.decisions cimport Route
from headway.state.views cimport ClusterState, PoolState


@cython.final
cdef class Handoff:
    cdef readonly double bytes_per_token
    cdef readonly double window_bytes_per_token
    cdef readonly long long window
    cdef readonly tuple far
    cdef readonly tuple near
    cdef readonly long long[::1] nodes
    cdef Py_ssize_t replicas
    cdef double[::1] bytes_per_s
    cdef double[::1] latency_s
    cdef double[::1] free_s
    cdef readonly double bytes_moved
    cdef readonly double wait_s
    cpdef double send(self, Py_ssize_t source, Py_ssize_t target, long long tokens, double now) except? -1


cdef int number(Engine engine, Py_ssize_t slot, int node) except -1


@cython.final
cdef class Cluster:
    cdef list engines
    cdef long long[::1] pool_of
    cdef long long[::1] leaders
    cdef readonly ClusterState state
    cdef Policy admit
    cdef Policy choose_model
    cdef Policy retain
    cdef Policy route
    cdef bint refreshes
    cdef HeldLines held
    cdef readonly Scaler scaler
    cdef dict deferrals
    cdef Arrivals arrivals
    cdef readonly Recorder recorder
    cdef EngineClock clock
    cdef list handoffs
    cdef list decodes
    cdef dict entry
    cdef bint several
    cdef list timers
    cdef long long serial
    cdef double think_s
    cdef bint closed
    cdef readonly double now
    cdef double turn_s
    cdef Py_ssize_t turn
    cdef readonly long long events
    cdef readonly long long over_context
    cdef readonly long long expired
    cpdef bint advance(self, long long events) except -1
    cdef double next_event(self) except? -1
    cdef int run_timer(self) except -1
    cdef int arrive(self, double now) except -1
    cdef int ask_admission(self, Sequence seq, double now) except -1
    cdef int defer(self, Sequence seq, double until_s, double now) except -1
    cdef int give_up(self, Sequence seq, Py_ssize_t pool, double now) except -1
    cdef object choose(self, Sequence seq, Py_ssize_t pool, double now)
    cdef int send(self, Sequence seq, Engine engine, Py_ssize_t pool, double now) except -1
    cdef double ask_retention(self, Sequence seq, Engine engine, double now) except? -1
    cdef int hold(self, Sequence seq, Py_ssize_t pool, double now) except -1
    cdef int offer(self, Py_ssize_t pool, double now) except -1
    cdef int expire(self, double now) except -1
    cdef int check_nobody_waits(self) except -1
    cdef int step_and_look(self, Engine engine, double now) except -1
    cdef int enter(self, Sequence seq, double now) except -1
    cdef str ask_model(self, Sequence seq, double now)
    cdef Handoff link(self, Py_ssize_t pool)
    cdef int show(self, Policy policy, double now) except -1
    cdef int scale(self, double now) except -1
    cdef int place(self, Sequence seq, Py_ssize_t pool, double now) except -1
    cdef int step(self, double now) except -1
    cdef bint late(self, Py_ssize_t engine, double now) noexcept
    cdef int hand_on(self, Engine engine, double now) except -1
    cdef int wake(self, Py_ssize_t replica) except -1
    cdef int drop(self, Sequence seq, Py_ssize_t pool, double now) except -1
    cdef int settle(self, Sequence seq, double now) except -1
    cdef int timer(self, double time_s, int priority, object what) except -1

cimport cython

from headway.engine.gaps cimport Gaps
from headway.engine.kv cimport KvPages
from headway.engine.lane cimport Lane
from headway.engine.law cimport StepLaw
from headway.engine.queue cimport WaitingQueue
from headway.engine.sequence cimport Line, Sequence
from headway.engine.work cimport BusyTime, WorkDone
from headway.state.views cimport ReplicaState, Request


@cython.final
cdef class Engine(ReplicaState):
    cdef readonly StepLaw law
    cdef readonly str role
    cdef Py_ssize_t slot
    cdef long long max_tokens
    cdef long long max_seqs
    cdef long long max_context
    cdef long long longest
    cdef bint alone
    cdef long long poll_steps
    cdef bint ahead
    cdef bint leaps
    cdef WaitingQueue queue
    cdef Line inbox
    cdef readonly KvPages kv
    cdef public list trace
    cdef list lanes
    cdef readonly Gaps gaps
    cdef Sequence partial
    cdef list flight
    cdef public object group
    cdef bint held
    cdef readonly bint single
    cdef double stage_free_s
    cdef double[::1] stage_s
    cdef Line incoming
    cdef list landed
    cdef long long serial
    cdef double next_s
    cdef Line out
    cdef Line starts
    cdef readonly BusyTime busy
    cdef readonly long long preemptions
    cdef readonly long long queried_tokens
    cdef readonly long long hit_tokens
    cdef readonly WorkDone work
    cdef bint fits(self, Sequence seq)
    cdef int enqueue(self, Sequence seq, double now, bint late) except -1
    cdef int expect(self, Sequence seq, double now, bint late) except -1
    cdef int land(self, Sequence seq, double now, bint late) except -1
    cdef int let_go(self, Sequence seq, double now) except -1
    cpdef int set_leaps(self, bint leaps) except -1
    cdef int notice(self, double now, bint late, long long grid=*) except -1
    cdef int step(self, double now) except -1
    cdef int close(self, Lane lane, double now) except -1
    cdef int close_decodes(self, Lane lane, double now) except -1
    cdef int token(self, Lane lane, Sequence seq, double now) except -1
    cdef int end(self, Sequence seq, double now) except -1
    cdef bint open(self, Lane lane, double now) except -1
    cdef int open_pipeline(self, double now) except -1
    cdef int plan_leap(self, Lane lane, double now, bint preempted) except -1
    cdef int start(self, Lane lane, long long n, double now) except -1
    cdef double through_stages(self, double now, double stage_s, long long tokens) except? -1
    cdef bint grow(self, Lane lane, double now) except -1
    cdef int preempt(self, Lane lane, Sequence seq, long long tokens, double now) except -1
    cdef bint continue_partial(self, Lane lane, double now) except -1
    cdef int admit_waiting(self, Lane lane, double now) except -1
    cdef int admit_incoming(self, double now) except -1
    cdef int chunk(self, Lane lane, Sequence seq, long long prefix, long long tokens) except -1
    cpdef int refresh(self, double now, bint late=*) except -1

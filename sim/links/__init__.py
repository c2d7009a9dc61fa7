"""Links between devices: topologies with contention, and what collectives over them cost, for machines of any kind."""

from sim.links.ring import RingCost as RingCost
from sim.links.ring import ring_cost as ring_cost
from sim.links.ring import transfer_ps as transfer_ps
from sim.links.schema import Links as Links

"""What particles are resampled by: any masses, as long as weights are divided by them.

Let particle i of N have the weight w_i towards the kernel's samples, without potentials. Resampled
with mass m_i (sum 1) it has N m_i children on average, and each the weight w_i / (N m_i): whatever
m > 0 is, what they estimate has the same mean. Let exp(reward / beta) at the end of a child's path
have the mean mu_i and the mean square s_i^2. With independent draws, the variance of the estimate
of sum_i w_i mu_i, which is unbiased for Z, is

    (sum_i w_i^2 s_i^2 / m_i - (sum_i w_i mu_i)^2) / N,    least for m_i proportional to w_i s_i.

That balances its two parts: what the paths add, sum_i w_i^2 (s_i^2 - mu_i^2) / m_i, and what the
draws of parents add, nothing with m_i proportional to w_i mu_i, and less with better schemes.

Variance-aware systematic resampling (VASR; Shekhar et al., 2026, arXiv 2604.06779) has mass
w_i exp(r_i / beta), which is the best where s_i is proportional to exp(r_i / beta): where what may
come from a particle varies by the same share of its mean for all of them. As w_i here is
exp(log weight - phi_i), that is what potential "difference" resamples by, with scheme "systematic",
and with threshold 1 at every step: it needs no option.

Mass "variance" takes s_i from k samples of the end of a particle's path instead, s_i^2 = mean
exp(2 r / beta) (`flowsde.search.value`). As a potential that is phi_i = log s_i, and beta phi_i the
value at beta / 2. At the last time phi is reward / beta again: the target, and E[exp(log_z)], stay.
Of a guided proposal the samples are of the kernel that it guides all the same, so that s_i is not
that of what is weighed by p / q: as good a mass as any, without being the best.
"""

MASSES = {"value": 1.0, "variance": 2.0}
"""The power of exp(reward / beta) whose mean over samples a mass is the root of."""

// Positive pairs of weight 1, without anything quadratic.
//
//   sum_{j in P(i)} z_i . z_j = z_i . (C - z_i),  C the sum of the class of row i
//
// and with references z_i . C, C the sum of the references of that class.
#pragma once

#include "operand.h"
#include "sorted_labels.h"

namespace spcl {

// Writes sum_{j in P(i)} z_i . z_j of every sorted row.
void class_similarities(const SortedLabels& sorted, const Operand& rows, const Operand& cols,
                        double* sims);

// Adds -sum_j (c_i + c_j) z_j / tau to the rows of dz (or, with references, -c_i sum_j r_j / tau),
// and the like to drefs; null where not needed. Rows of dz and drefs are in the original order.
void add_class_gradients(const SortedLabels& sorted, const Operand& rows, const Operand& cols,
                         const std::vector<float>& c, double tau, float* dz, float* drefs);

}  // namespace spcl

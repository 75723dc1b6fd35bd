// How a matrix of similarities is cut into panels; nothing of it depends on values.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "panel.cuh"

namespace spcl::cuda {

// A product of fewer rows leaves a large device idle.
constexpr int64_t kMinPanelRows = 512;
// More would not fit the second dimension of a grid, and narrow panels are padded.
constexpr int64_t kMaxPanelRows = 1 << 20;
// A row of a panel starts at 16 bytes in float32 and half precision.
constexpr int64_t kPanelPad = 8;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

inline int64_t panel_size(const Panel& panel) { return panel.num_rows * panel.stride; }

// Panels of about `elements` numbers that hold every pair, of a square matrix every unordered pair.
// Rows [r0, r1) of a square matrix come with the columns from r0 on: their own block has both
// orders of a pair, so the columns behind r1 alone are summed.
inline std::vector<Panel> make_panels(int64_t num_rows, int64_t num_cols, bool is_square,
                                      int64_t elements, int64_t min_rows = kMinPanelRows) {
  std::vector<Panel> panels;
  for (int64_t r0 = 0; r0 < num_rows && num_cols > 0;) {
    const int64_t start = is_square ? r0 : 0;
    const int64_t rows = std::clamp(elements / (num_cols - start), min_rows, kMaxPanelRows);
    const int64_t r1 = std::min(num_rows, r0 + rows / kTileCols * kTileCols);
    const int64_t width =
        std::max<int64_t>(kTileCols, elements / (r1 - r0) / kTileCols * kTileCols);
    for (int64_t c0 = start; c0 < num_cols; c0 += width) {
      const int64_t size = std::min(width, num_cols - c0);
      const int64_t first_col = is_square ? std::clamp<int64_t>(r1 - c0, 0, size) : 0;
      const int64_t stride = round_up(size, kPanelPad);
      panels.push_back({r0, c0, r1 - r0, size, stride, first_col, is_square});
    }
    r0 = r1;
  }
  return panels;
}

// What the panels need at most: numbers of a panel, parts of the sums of its rows and columns.
struct PanelSizes {
  int64_t panel = 0, row_parts = 0, col_parts = 0;
};

inline int64_t row_parts(const Panel& panel) { return ceil_div(panel.num_cols, kTileCols); }
inline int64_t col_parts(const Panel& panel) { return ceil_div(panel.num_rows, kTileRows); }

inline PanelSizes largest(const std::vector<Panel>& panels) {
  PanelSizes sizes;
  for (const Panel& panel : panels) {
    sizes.panel = std::max(sizes.panel, panel_size(panel));
    sizes.row_parts = std::max(sizes.row_parts, row_parts(panel) * panel.num_rows);
    sizes.col_parts = std::max(sizes.col_parts, col_parts(panel) * panel.num_cols);
  }
  return sizes;
}

}  // namespace spcl::cuda

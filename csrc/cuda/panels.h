// How a matrix of similarities is cut into panels; nothing of it depends on values.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "panel.cuh"

namespace spcl::cuda {

// A panel costs some launches, whatever its size, so it is as large as memory may be: 192 MiB of
// products in float32, and 96 MiB more of a gradient in half precision. It is no taller than keeps
// both of its products busy, and a square matrix of 2 x 2 of them is 1/4 larger than its half.
constexpr int64_t kPanelRows = 4096;
constexpr int64_t kPanelElements = kPanelRows * 12288;
// More would not fit the second dimension of a grid, and narrow panels are padded.
constexpr int64_t kMaxPanelRows = 1 << 20;
// A row of a panel starts at 16 bytes in float32 and half precision.
constexpr int64_t kPanelPad = 8;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

inline int64_t panel_size(const Panel& panel) { return panel.num_rows * panel.stride; }

// The size of as few equal parts as have at most `most`, in whole tiles.
constexpr int64_t even_part(int64_t size, int64_t most) {
  return round_up(ceil_div(size, ceil_div(size, most)), kTileCols);
}

// Panels of at most `elements` numbers that hold every pair, of a square matrix every unordered
// pair. Rows [r0, r1) of a square matrix come with the columns from r0 on: their own block has both
// orders of a pair, so the columns behind r1 alone are summed. `rows` is a multiple of a tile's.
inline std::vector<Panel> make_panels(int64_t num_rows, int64_t num_cols, bool is_square,
                                      int64_t elements = kPanelElements,
                                      int64_t rows = kPanelRows) {
  std::vector<Panel> panels;
  if (num_rows == 0 || num_cols == 0) return panels;
  if (!is_square) rows = std::clamp(elements / num_cols, rows, kMaxPanelRows);
  const int64_t height = even_part(num_rows, rows / kTileCols * kTileCols);
  for (int64_t r0 = 0; r0 < num_rows; r0 += height) {
    const int64_t r1 = std::min(num_rows, r0 + height), start = is_square ? r0 : 0;
    const int64_t most = std::max(int64_t{1}, elements / (r1 - r0) / kTileCols) * kTileCols;
    const int64_t width = even_part(num_cols - start, most);
    for (int64_t c0 = start; c0 < num_cols; c0 += width) {
      const int64_t size = std::min(width, num_cols - c0);
      const int64_t first_col = is_square ? std::clamp<int64_t>(r1 - c0, 0, size) : 0;
      const int64_t stride = round_up(size, kPanelPad);
      panels.push_back({r0, c0, r1 - r0, size, stride, first_col, is_square});
    }
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

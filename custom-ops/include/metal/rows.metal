// Rows of a sequence in pages: row r is row r mod page_rows of page r / page_rows.

// A page's address, as the host writes it into the table.
struct Page {
    device const uchar* bytes;
};

// Where row `row` begins.
inline device const uchar* row_at(constant Page* pages, uint row, uint page_rows, uint row_bytes) {
    return pages[row / page_rows].bytes + ulong(row % page_rows) * row_bytes;
}

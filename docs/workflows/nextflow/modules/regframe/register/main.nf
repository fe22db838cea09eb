process REGFRAME_REGISTER {
    tag "$meta.id"
    label 'process_medium'

    conda "${moduleDir}/environment.yml"
    container "${params.regframe_container ?: 'regframe:0.1.0'}"

    input:
    tuple val(meta), path(fixed, stageAs: 'fixed/*'), path(moving, stageAs: 'moving/*')
    path(landmarks)

    output:
    tuple val(meta), path("${prefix}"), emit: result
    tuple val(meta), path("${prefix}/report.html"), emit: report
    tuple val(meta), path("${prefix}/metrics.json"), emit: metrics
    tuple val(meta), env('VERDICT'), emit: verdict
    path "versions.yml", emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    def pairs = landmarks ? "--landmarks ${landmarks}" : ''
    // exit code 3 is a map with the verdict fail: it ends the process, unless ext.accept = 'fail'
    def accepted = task.ext.accept == 'fail' ? 3 : 0
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    export OMP_NUM_THREADS=${task.cpus} MPLCONFIGDIR=\$PWD/.matplotlib

    code=0
    regframe register ${fixed} ${moving} -o ${prefix} ${pairs} ${args} || code=\$?
    [ \$code -eq 0 ] || [ \$code -eq ${accepted} ] || exit \$code
    VERDICT=\$(sed -nE 's/^ *"verdict": *"([a-z]+)".*/\\1/p' ${prefix}/metrics.json | head -n 1)

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        regframe: \$(regframe --version | sed 's/^regframe //')
    END_VERSIONS
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    mkdir -p ${prefix}/transform.ome.zarr
    touch ${prefix}/report.html
    echo '{"verdict": "pass"}' > ${prefix}/metrics.json
    VERDICT=pass

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        regframe: \$(regframe --version | sed 's/^regframe //')
    END_VERSIONS
    """
}
